"""What the latents carry: rate and active units, summed so that batches and devices add up."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unified_vae.core.posterior import DiagonalGaussian

ACTIVE_VARIANCE = 0.01  # Burda et al. 2016 (arXiv 1509.00519), section 5: active iff Var_x[E[z_j|x]] > 0.01


@dataclass
class LatentSums:
    """Sums over images of what each latent unit does.

    Attributes:
        images: number of images, scalar.
        kl: [latents], sum of each unit's KL in nats.
        mean: [latents], sum of posterior means.
        mean_square: [latents], sum of squared posterior means.
    """

    images: Tensor
    kl: Tensor
    mean: Tensor
    mean_square: Tensor

    @classmethod
    def empty(cls, latents: int, device: torch.device, dtype: torch.dtype) -> LatentSums:
        """Sums over no image."""
        zeros = torch.zeros(latents, device=device, dtype=dtype)
        return cls(torch.zeros((), device=device, dtype=dtype), zeros, zeros.clone(), zeros.clone())

    def add(self, posterior: DiagonalGaussian) -> None:
        """Count a batch."""
        dtype = self.kl.dtype
        self.images += len(posterior.mean)
        self.kl += posterior.kl_per_unit().to(dtype).sum(0)
        self.mean += posterior.mean.to(dtype).sum(0)
        self.mean_square += posterior.mean.to(dtype).square().sum(0)

    def tensors(self) -> list[Tensor]:
        """The sums, for adding them up over devices in place."""
        return [self.images, self.kl, self.mean, self.mean_square]

    def kl_per_unit(self) -> Tensor:
        """[latents], mean KL of each unit in nats."""
        return self.kl / self.images

    def rate(self) -> float:
        """Mean KL of an image, summed over units, in nats."""
        return float(self.kl_per_unit().sum())

    def variance_of_means(self) -> Tensor:
        """[latents], Var_x[mu_j(x)]."""
        mean = self.mean / self.images
        return (self.mean_square / self.images - mean.square()).clamp_min(0)

    def active(self) -> Tensor:
        """[latents], whether each unit is active."""
        return self.variance_of_means() > ACTIVE_VARIANCE
