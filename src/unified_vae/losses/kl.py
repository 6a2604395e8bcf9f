"""The rate: how many nats the latents tell about an image, beyond the prior N(0, I)."""

from __future__ import annotations

from torch import Tensor

from unified_vae.core.posterior import DiagonalGaussian


def rate(posterior: DiagonalGaussian) -> Tensor:
    """KL(q(z|x) || N(0, I)) summed over latents: [batch], nats per image, float32."""
    return posterior.kl_per_unit().float().sum(1)
