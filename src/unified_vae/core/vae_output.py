"""What one pass through a VAE gives: everything the objective and the metrics need."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from unified_vae.core.posterior import DiagonalGaussian


@dataclass(frozen=True)
class VAEOutput:
    """Attributes:
    reconstruction: [batch, channels, height, width], pixels nominally in [0, 1], not clipped.
    posterior: q(z|x) of each image.
    latents: [batch, latents], the z that was decoded.
    """

    reconstruction: Tensor
    posterior: DiagonalGaussian
    latents: Tensor
