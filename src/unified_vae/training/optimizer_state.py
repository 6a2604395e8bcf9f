"""An optimizer's state as named tensors, so that it is saved without pickle and read by parameter name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from unified_vae.core.errors import CheckpointError


def optimizer_tensors(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """`parameter name/state name` -> tensor, e.g. `encoder.head.weight/exp_avg`."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}/{slot}": torch.as_tensor(value)
        for parameter, slots in optimizer.state.items()
        for slot, value in slots.items()
        if value is not None
    }


def load_optimizer_tensors(optimizer: Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put saved state back; what the optimizer's groups say (rates, betas) stays as it is now.

    Raises:
        CheckpointError: the state names a parameter that the model does not have, or is of other shapes.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    parameters = dict(model.named_parameters())
    place = {name: number for number, name in enumerate(order)}
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, slot = key.rpartition("/")
        if name not in place:
            raise CheckpointError(f"the checkpoint's optimizer state is of another model: it names {name or key}.")
        if value.ndim > 0:
            if value.shape != parameters[name].shape:
                raise CheckpointError(f"the checkpoint's optimizer state of {name} is of another shape.")
            # fused kernels take the numbers in the order in which they lie: it has to be the weights' own
            value = torch.empty_like(parameters[name], dtype=value.dtype, requires_grad=False).copy_(value)
        slots.setdefault(place[name], {})[slot] = value
    if len({frozenset(held) for held in slots.values()}) > 1:
        raise CheckpointError("the checkpoint's optimizer state is incomplete.")
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
