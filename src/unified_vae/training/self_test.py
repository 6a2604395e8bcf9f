"""Before the first step, one batch proves that every enabled loss term has a gradient.

Guards against loss terms computed without gradients, a bug found in two published trainers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unified_vae.core.errors import ConfigError
from unified_vae.losses.objective import Objective
from unified_vae.models.vae import VAE


def dead_terms(model: VAE, objective: Objective, images: Tensor, noise: Tensor) -> list[str]:
    """Names of enabled terms whose gradient is zero or missing: at the decoder, or for `kl` at the encoder.

    The gradients are those of the raw terms, so a warm-up that starts at 0 does not hide one. A frozen encoder or
    decoder is left out.

    Args:
        images: [batch, channels, size, size] in [0, 1], on the model's device.
        noise: [batch, latents].
    """
    output = model(images, noise)
    decoder = [p for p in model.decoder.parameters() if p.requires_grad]
    encoder = [p for p in model.encoder.parameters() if p.requires_grad]
    values = objective.measure(output, images)
    dead = [f"loss.{name}" for name, value in values.items() if not _moves(value, decoder or encoder)]
    if encoder and objective.config.kl.weight > 0 and not _moves(output.posterior.kl_per_unit().sum(1).mean(), encoder):
        dead.append("loss.kl")
    return dead


def _moves(value: Tensor, parameters: list[torch.nn.Parameter]) -> bool:
    if not value.requires_grad:
        return False
    gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return any(bool((gradient != 0).any()) for gradient in gradients if gradient is not None)


def refuse_dead_terms(model: VAE, objective: Objective, images: Tensor, noise: Tensor) -> None:
    """Raise ConfigError where a term is enabled and has no effect."""
    dead = dead_terms(model, objective, images, noise)
    if dead:
        raise ConfigError(
            f"{' and '.join(dead)} is enabled but does not move the weights it should (its gradient is zero), "
            "so this run would ignore it. Set its weight to 0, or report this."
        )
