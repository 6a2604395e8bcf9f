"""The posterior q(z|x) that the encoder gives for each image, and the output of one pass through a VAE."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MOST_CORRELATED = 2048  # units up to which all pairs of them are looked at: beyond, that takes minutes and gigabytes
LOGVAR_RANGE = (-30.0, 20.0)  # beyond this exp() leaves the useful range of float32


@dataclass(frozen=True)
class DiagonalGaussian:
    """A batch of diagonal Gaussians, always float32.

    Attributes:
        mean: [batch, latents], float32.
        logvar: [batch, latents], float32, natural logarithm of the variance.
    """

    mean: Tensor
    logvar: Tensor

    @classmethod
    def from_moments(cls, moments: Tensor) -> DiagonalGaussian:
        """Split an encoder's output [batch, 2 * latents] into mean and clamped log variance, in float32."""
        mean, logvar = moments.float().chunk(2, dim=1)
        return cls(mean, logvar.clamp(*LOGVAR_RANGE))

    def sample(self, noise: Tensor) -> Tensor:
        """Return z = mean + std * noise (Kingma & Welling 2014); `noise` is standard normal, of mean's shape."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise

    def kl_per_unit(self) -> Tensor:
        """Return KL(q(z_j|x) || N(0, 1)) in nats, shape [batch, latents]."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar)


@dataclass(frozen=True)
class VAEOutput:
    """What the objective and the metrics need of one pass through a VAE.

    Attributes:
        reconstruction: [batch, channels, height, width], pixels nominally in [0, 1], not clipped.
        posterior: q(z|x) of each image.
        latents: [batch, latents], the z that was decoded.
    """

    reconstruction: Tensor
    posterior: DiagonalGaussian
    latents: Tensor
