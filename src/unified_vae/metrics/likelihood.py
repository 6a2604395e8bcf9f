"""Bounds on the likelihood of images: the ELBO and the importance-weighted bound (Burda et al. 2016, arXiv 1509.00519).

The observation model is p(x|z) = N(x; decode(z), sigma^2 I) on pixels in [0, 1] with one sigma for all: the most likely
one, the root mean squared error over images and draws (Rybkin et al. 2021, arXiv 2006.13202). So models trained with
any loss are measured alike. Pixels are integers of 256 steps: a density at them, times the width of a step, stands for
the probability of the step, which adds 8 bits a value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from unified_vae.core.posterior import DiagonalGaussian

STEP = 1 / 255
SMALLEST_VARIANCE = STEP**2 / 12  # of the rounding itself: below it the density would exceed what a step can hold
BITS_OF_A_STEP = 8.0


@dataclass(frozen=True)
class LatentDraws:
    """What draws z from q(z|x) say of each image.

    Attributes:
        errors: [images, draws], sum over pixel values of the squared error of decode(z), float64.
        log_ratio: [images, draws], log p(z) - log q(z|x) in nats, float64.
        rate: [images], KL(q(z|x) || p(z)) in nats, exact, float64.
        dimensions: pixel values of an image.
    """

    errors: Tensor
    log_ratio: Tensor
    rate: Tensor
    dimensions: int

    def variance(self) -> float:
        """The most likely sigma^2 for these images and draws."""
        return max(float(self.errors.mean()) / self.dimensions, SMALLEST_VARIANCE)

    def elbo(self, variance: float) -> Tensor:
        """Each image's evidence lower bound in nats, [images]; the rate is exact."""
        return self._log_likelihood(variance).mean(1) - self.rate

    def importance_bound(self, variance: float) -> Tensor:
        """Each image's log (1/K) sum_k p(x|z_k) p(z_k) / q(z_k|x) in nats, [images]; Burda et al., equation 8."""
        weights = self._log_likelihood(variance) + self.log_ratio
        return weights.logsumexp(1) - math.log(weights.shape[1])

    def bits_per_dim(self, nats: Tensor) -> Tensor:
        """Code length of 8-bit pixels in bits a value, of log densities in nats."""
        return -nats / (self.dimensions * math.log(2)) + BITS_OF_A_STEP

    def _log_likelihood(self, variance: float) -> Tensor:
        return -0.5 * (self.errors / variance + self.dimensions * math.log(2 * math.pi * variance))


def log_ratio(posterior: DiagonalGaussian, noise: Tensor) -> Tensor:
    """log p(z) - log q(z|x) of z = mean + std * noise, [batch], float64; the constants cancel."""
    latents = posterior.sample(noise).double().flatten(1)
    own = noise.double().flatten(1).square() + posterior.logvar.double().flatten(1)
    return 0.5 * (own - latents.square()).sum(1)
