"""The aggregated posterior against the prior: q(z) = mean over images of q(z|x), by its mean and covariance.

Hoffman & Johnson, "ELBO surgery", NIPS workshop 2016: the rate is the information that a latent holds about which
image it came from, plus KL(q(z) || p(z)), the gap that decoding draws from the prior has to bridge. The gap is that
of the Gaussian with q(z)'s mean and covariance, KL(N(m, C) || N(0, I)): a lower bound on what a closer look would
find (the Gaussian has the largest entropy of its covariance, so the true gap is never smaller).

With few images a covariance shows correlations by chance. They are shrunk towards none by the oracle
approximating estimator (Chen, Wiesel, Eldar, Hero 2010, arXiv 0907.4698), which needs no further data.

Of more than MOST_CORRELATED units only each unit's own part of the gap is measured: a lower bound as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unified_vae.core.posterior import MOST_CORRELATED, DiagonalGaussian

SMALLEST_VARIANCE = 1e-12


@dataclass
class AggregateSums:
    """Sums over images of what q(z) is made of.

    Attributes:
        images: number of images, scalar.
        mean: [latents], sum of posterior means.
        outer: [latents, latents], sum of the posterior means' outer products; of many units the diagonal, [latents].
        variance: [latents], sum of posterior variances.
    """

    images: Tensor
    mean: Tensor
    outer: Tensor
    variance: Tensor

    @classmethod
    def empty(cls, latents: int, device: torch.device, dtype: torch.dtype) -> AggregateSums:
        """Sums over no image."""
        zeros = torch.zeros(latents, device=device, dtype=dtype)
        shape = (latents, latents) if latents <= MOST_CORRELATED else (latents,)
        square = torch.zeros(shape, device=device, dtype=dtype)
        return cls(torch.zeros((), device=device, dtype=dtype), zeros, square, zeros.clone())

    def add(self, posterior: DiagonalGaussian) -> None:
        """Count a batch."""
        mean = posterior.mean.float()
        self.images += len(mean)
        self.mean += mean.to(self.mean).sum(0)
        self.outer += (mean.T @ mean if self.outer.dim() == 2 else mean.square().sum(0)).to(self.outer)
        self.variance += posterior.logvar.exp().to(self.variance).sum(0)

    def tensors(self) -> list[Tensor]:
        """The sums, for adding them up over devices in place."""
        return [self.images, self.mean, self.outer, self.variance]

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean [latents] and covariance [latents, latents] of q(z), float64 on the CPU: noise included.

        Of many units the covariance is its diagonal, [latents].
        """
        images, mean, outer, variance = (value.cpu().double() for value in self.tensors())
        mean, outer, variance = mean / images, outer / images, variance / images
        if outer.dim() == 1:
            return mean, (outer - mean.square()).clamp_min(0) + variance
        covariance = outer - torch.outer(mean, mean)
        own = covariance.diagonal().clamp_min(0) + variance
        return mean, covariance - torch.diag(covariance.diagonal()) + torch.diag(own)

    def gap(self) -> float:
        """KL(N(m, C) || N(0, I)) in nats an image: each unit's own part, and the units' correlations."""
        mean, covariance = self.moments()
        own = covariance if covariance.dim() == 1 else covariance.diagonal()
        variance = own.clamp_min(SMALLEST_VARIANCE)
        units = 0.5 * (variance + mean.square() - 1.0 - variance.log()).sum()
        if covariance.dim() == 1:
            return float(units)
        scale = variance.sqrt()
        correlation = shrunk(covariance / torch.outer(scale, scale), int(self.images))
        return float(units - 0.5 * torch.linalg.slogdet(correlation)[1])


def shrunk(correlation: Tensor, images: int) -> Tensor:
    """The correlation matrix drawn towards the identity as far as `images` of them leave it uncertain."""
    size = len(correlation)
    square = correlation.square().sum()
    spread = (images + 1 - 2 / size) * (square - size)
    share = ((1 - 2 / size) * square + size**2) / spread.clamp_min(SMALLEST_VARIANCE)
    share = share.clamp(0.0, 1.0)
    return (1 - share) * correlation + share * torch.eye(size, dtype=correlation.dtype)
