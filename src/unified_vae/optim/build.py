"""From the settings of an optimizer and of parameter groups to torch optimizers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from unified_vae.config.optim import AdamConfig, AdamWConfig, OptimizerConfig, ParameterGroupConfig, SGDConfig
from unified_vae.core.errors import ConfigError


def freeze_parameters(model: nn.Module, groups: Sequence[ParameterGroupConfig]) -> None:
    """Switch off the gradients of parameters in a frozen group. Comes before averaged weights and optimizers are made.

    Raises:
        ConfigError: a group matches no parameter, or nothing is left to train.
    """
    matched = {name: _group_of(name, groups) for name, _ in model.named_parameters()}
    for number, group in enumerate(groups):
        if number not in matched.values():
            raise ConfigError(
                f"training.parameter_groups: no parameter matches {group.pattern!r}, or an earlier group has it."
            )
    for name, parameter in model.named_parameters():
        number_of = matched[name]
        if number_of is not None and groups[number_of].frozen:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("training.parameter_groups freezes every parameter: nothing is left to train.")


def build_optimizers(
    config: OptimizerConfig, model: nn.Module, fused: bool, groups: Sequence[ParameterGroupConfig] = ()
) -> dict[str, Optimizer]:
    """The optimizers of the trainable parameters of `model`, by name: `main`, and one per group with its own.

    Biases and norm gains (every parameter of fewer than two dimensions) are not decayed. Each parameter group has an
    `initial_lr`, which the trainer multiplies by the schedule's factor.

    Args:
        config: a member of the typed union.
        fused: one kernel for all parameters, which can also skip an update on the device itself, without waiting for
            the host.
        groups: the first whose pattern matches a parameter's name takes it; the rest are of the main optimizer.
    """
    members: dict[str, tuple[OptimizerConfig, list[dict[str, object]]]] = {"main": (config, [])}
    for number, group in [(None, ParameterGroupConfig(pattern="*")), *enumerate(groups)]:
        own = group.optimizer or config
        key = f"group {number}" if group.optimizer else "main"
        decay = 0.0 if isinstance(own, AdamConfig) else own.weight_decay
        decay = decay if group.weight_decay is None else group.weight_decay
        lr = own.lr * group.lr_factor
        parameters = [
            parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and _group_of(name, groups) == number
        ]
        matrices, vectors = [p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]
        members.setdefault(key, (own, []))[1].extend(
            {"params": params, "lr": lr, "initial_lr": lr, "weight_decay": weight_decay}
            for params, weight_decay in ((matrices, decay), (vectors, 0.0))
            if params
        )
    return {name: _build(own, param_groups, fused) for name, (own, param_groups) in members.items() if param_groups}


def _group_of(name: str, groups: Sequence[ParameterGroupConfig]) -> int | None:
    """The number of the group that takes a parameter; None for the main optimizer's."""
    return next((number for number, group in enumerate(groups) if fnmatchcase(name, group.pattern)), None)


def _build(config: OptimizerConfig, groups: list[dict[str, object]], fused: bool) -> Optimizer:
    match config:
        case AdamWConfig() | AdamConfig():
            kind = without_dynamo(AdamW if isinstance(config, AdamWConfig) else Adam)
            return kind(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=fused)
        case SGDConfig():
            nesterov = config.nesterov and config.momentum > 0
            sgd = without_dynamo(SGD)(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov, fused=fused)
            if config.momentum > 0:  # a skipped first step would leave the fused kernel's momentum uninitialized
                for group in sgd.param_groups:
                    for parameter in group["params"]:
                        sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            return sgd


def without_dynamo(kind: type[Optimizer]) -> Callable[..., Optimizer]:
    """A subclass whose methods do not import torch.compile, which would double a run's start-up.

    Several methods of a torch optimizer are wrapped for the compiler and import all of it (sympy, inductor) when first
    called: 4 s on a laptop core. The subclass has the methods inside of these wrappers; step hooks are called as usual.
    """
    names = ("add_param_group", "state_dict", "load_state_dict", "zero_grad")
    members = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    members["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), members)
