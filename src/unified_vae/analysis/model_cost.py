"""What a model costs, before anything is trained: parameters, operations, memory. Counted on tensors without memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from unified_vae.config.model import ModelConfig
from unified_vae.core.distributions import VAEOutput
from unified_vae.models.build import build_model
from unified_vae.models.vae import VAE

IMAGES = 2  # looked at; what they cost is divided by their number
FLOAT_BYTES = 4
COPIES_OF_TRAINED = 5  # weight, gradient, two moments of Adam, average
COPIES_OF_FIXED = 2  # weight, and that of the averaged model


@dataclass(frozen=True)
class ModelCost:
    """Attributes:
    parameters: all, the fixed ones included.
    fixed: those of the PCA skip, which are not trained.
    forward_flops: of one image; a multiplication and an addition are two operations.
    step_flops: of one image, forward and backward. The loss terms' own networks are not counted.
    kept_bytes: what the forward pass of one image keeps for the backward pass, in float32.
    """

    parameters: int
    fixed: int
    forward_flops: float
    step_flops: float
    kept_bytes: int

    def step_bytes(self, images: int) -> int:
        """About the memory of a step in float32 with Adam, of so many images at once: weights, state, activations.

        Gradients of activations take about as much again as what is kept.
        """
        state = COPIES_OF_TRAINED * (self.parameters - self.fixed) + COPIES_OF_FIXED * self.fixed
        return FLOAT_BYTES * state + 2 * self.kept_bytes * images


def model_cost(config: ModelConfig) -> ModelCost:
    """The figures of a model; of three channels where they are still `auto`."""
    if config.channels == "auto":
        config = config.replace(channels=3)
    with torch.device("meta"):
        model = build_model(config)
        images = torch.empty(IMAGES, model.channels, model.image_size, model.image_size)
        output, in_training, kept = _forward(model, images)
        with FlopCounterMode(display=False) as forward:
            model.eval()(images)
        with FlopCounterMode(display=False) as backward:
            (output.reconstruction.sum() + output.posterior.kl_per_unit().sum()).backward()
    return ModelCost(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        fixed=sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad),
        forward_flops=forward.get_total_flops() / IMAGES,
        step_flops=(in_training + backward.get_total_flops()) / IMAGES,
        kept_bytes=kept // IMAGES,
    )


def _forward(model: VAE, images: Tensor) -> tuple[VAEOutput, int, int]:
    """The output with its operations and the bytes that it keeps, weights apart."""
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    keeping = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with keeping, FlopCounterMode(display=False) as counter:
        output = model(images)
    return output, counter.get_total_flops(), sum(kept.values())
