"""Metrics of latents: KL per unit, active units, the gap to the prior, likelihood bounds, and MIG."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unified_vae.core.distributions import MOST_CORRELATED, DiagonalGaussian
from unified_vae.metrics.images import Sums

ACTIVE_VARIANCE = 0.01  # Burda et al. 2016 (arXiv 1509.00519), section 5: active iff Var_x[E[z_j|x]] > 0.01
SMALLEST_UNIT_VARIANCE = 1e-12

PIXEL_STEP = 1 / 255
SMALLEST_PIXEL_VARIANCE = PIXEL_STEP**2 / 12  # of the rounding itself: below it the density exceeds what a step holds
PIXEL_BITS = 8.0

MIG_BINS = 20

Latents = npt.NDArray[np.float64]
"""[images, latents]"""
Labels = npt.NDArray[np.int64]
"""[images, columns]"""


# --- sums over batches and devices -----------------------------------------------------------------------


@dataclass
class LatentSums(Sums):
    """Sums over images of posterior moments: the KL of each unit, and the aggregate posterior q(z).

    q(z) is the mean over images of q(z|x). Hoffman & Johnson, "ELBO surgery", NIPS workshop 2016: the KL term is the
    information that a latent holds about which image it came from, plus KL(q(z) || p(z)), the gap that decoding draws
    from the prior has to bridge.

    Attributes:
        images: number of images, scalar.
        kl: [latents], sum of each unit's KL in nats.
        mean: [latents], sum of posterior means.
        mean_square: [latents], sum of squared posterior means.
        outer: [latents, latents], sum of the posterior means' outer products; of more than MOST_CORRELATED units the
            diagonal, [latents].
        variance: [latents], sum of posterior variances.
    """

    images: Tensor
    kl: Tensor
    mean: Tensor
    mean_square: Tensor
    outer: Tensor
    variance: Tensor

    @classmethod
    def empty(cls, latents: int, device: torch.device, dtype: torch.dtype) -> LatentSums:
        """Create sums over no image."""
        shapes = [(), (latents,), (latents,), (latents,), (latents, latents), (latents,)]
        if latents > MOST_CORRELATED:
            shapes[4] = (latents,)
        return cls(*(torch.zeros(shape, device=device, dtype=dtype) for shape in shapes))

    def add(self, posterior: DiagonalGaussian) -> None:
        """Add a batch."""
        dtype, mean = self.kl.dtype, posterior.mean.float()
        self.images += len(mean)
        self.kl += posterior.kl_per_unit().to(dtype).sum(0)
        self.mean += mean.to(dtype).sum(0)
        self.mean_square += mean.to(dtype).square().sum(0)
        self.outer += (mean.T @ mean if self.outer.dim() == 2 else mean.square().sum(0)).to(dtype)
        self.variance += posterior.logvar.exp().to(dtype).sum(0)

    def kl_per_unit(self) -> Tensor:
        """Return the mean KL of each unit in nats, [latents]."""
        return self.kl / self.images

    def rate(self) -> float:
        """Return the mean KL per image, summed over units, in nats."""
        return float(self.kl_per_unit().sum())

    def variance_of_means(self) -> Tensor:
        """Return Var_x[mu_j(x)], [latents]."""
        mean = self.mean / self.images
        return (self.mean_square / self.images - mean.square()).clamp_min(0)

    def active(self) -> Tensor:
        """Return whether each unit is active, [latents]."""
        return self.variance_of_means() > ACTIVE_VARIANCE

    def aggregate_moments(self) -> tuple[Tensor, Tensor]:
        """Return mean [latents] and covariance [latents, latents] of q(z), float64 on the CPU, noise included.

        Of more than MOST_CORRELATED units the covariance is its diagonal, [latents].
        """
        images = self.images.cpu().double()
        mean, outer, variance = (sums.cpu().double() / images for sums in (self.mean, self.outer, self.variance))
        if outer.dim() == 1:
            return mean, (outer - mean.square()).clamp_min(0) + variance
        covariance = outer - torch.outer(mean, mean)
        diagonal = covariance.diagonal().clamp_min(0) + variance
        return mean, covariance - torch.diag(covariance.diagonal()) + torch.diag(diagonal)

    def gap(self) -> float:
        """Return KL(N(m, C) || N(0, I)) in nats per image, with mean m and covariance C of q(z).

        A lower bound of KL(q(z) || p(z)): the Gaussian has the largest entropy of its covariance. Of more than
        MOST_CORRELATED units only each unit's own part counts, a lower bound as well.
        """
        mean, covariance = self.aggregate_moments()
        diagonal = covariance if covariance.dim() == 1 else covariance.diagonal()
        variance = diagonal.clamp_min(SMALLEST_UNIT_VARIANCE)
        units = 0.5 * (variance + mean.square() - 1.0 - variance.log()).sum()
        if covariance.dim() == 1:
            return float(units)
        scale = variance.sqrt()
        correlation = shrink_correlation(covariance / torch.outer(scale, scale), int(self.images))
        return float(units - 0.5 * torch.linalg.slogdet(correlation)[1])


def shrink_correlation(correlation: Tensor, images: int) -> Tensor:
    """Shrink a correlation matrix towards the identity as far as `images` of them leave it uncertain.

    Few images show correlations by chance. This is the oracle approximating estimator (Chen, Wiesel, Eldar, Hero 2010,
    arXiv 0907.4698), which needs no further data.
    """
    size = len(correlation)
    square = correlation.square().sum()
    spread = (images + 1 - 2 / size) * (square - size)
    weight = ((1 - 2 / size) * square + size**2) / spread.clamp_min(SMALLEST_UNIT_VARIANCE)
    weight = weight.clamp(0.0, 1.0)
    return (1 - weight) * correlation + weight * torch.eye(size, dtype=correlation.dtype)


# --- likelihood ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LatentDraws:
    """Draws z from q(z|x) of each image, and the bounds on its likelihood that they give.

    The observation model is p(x|z) = N(x; decode(z), sigma^2 I) on pixels in [0, 1] with one sigma for all: the most
    likely one, the root mean squared error over images and draws (Rybkin et al. 2021, arXiv 2006.13202). So models
    trained with any loss are measured alike. Pixels are integers of 256 steps: a density at them, times the width of a
    step, stands for the probability of the step, which adds 8 bits per value.

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
        """Return the most likely sigma^2 for these images and draws."""
        return max(float(self.errors.mean()) / self.dimensions, SMALLEST_PIXEL_VARIANCE)

    def elbo(self, variance: float) -> Tensor:
        """Return each image's evidence lower bound in nats, [images]; its KL term is exact."""
        return self._log_likelihood(variance).mean(1) - self.rate

    def importance_bound(self, variance: float) -> Tensor:
        """Return each image's log (1/K) sum_k p(x|z_k) p(z_k) / q(z_k|x) in nats, [images].

        Burda et al. 2016, arXiv 1509.00519, equation 8.
        """
        weights = self._log_likelihood(variance) + self.log_ratio
        return weights.logsumexp(1) - math.log(weights.shape[1])

    def bits_per_dim(self, nats: Tensor) -> Tensor:
        """Convert log densities in nats to the code length of 8-bit pixels in bits per value."""
        return -nats / (self.dimensions * math.log(2)) + PIXEL_BITS

    def _log_likelihood(self, variance: float) -> Tensor:
        return -0.5 * (self.errors / variance + self.dimensions * math.log(2 * math.pi * variance))


def log_ratio(posterior: DiagonalGaussian, noise: Tensor) -> Tensor:
    """Return log p(z) - log q(z|x) of z = mean + std * noise, [batch], float64; the constants cancel."""
    latents = posterior.sample(noise).double().flatten(1)
    log_q = noise.double().flatten(1).square() + posterior.logvar.double().flatten(1)
    return 0.5 * (log_q - latents.square()).sum(1)


# --- disentanglement -------------------------------------------------------------------------------------
# As disentanglement_lib defines it (Locatello et al. 2019, arXiv 1811.12359), between 0 and 1; latents are posterior
# means, factors are discrete.


def bin_latents(latents: Latents) -> Labels:
    """Put each latent into MIG_BINS bins of equal width over its range: [images, latents] from 1 on."""
    columns = [np.digitize(values, np.histogram(values, MIG_BINS)[1][:-1]) for values in latents.T]
    return np.stack(columns, 1).astype(np.int64)


def mutual_information(bins: Labels, factor: Labels) -> npt.NDArray[np.float64]:
    """Return the mutual information of each column [images, columns] and a factor [images], in nats: [columns]."""
    images, columns = bins.shape
    width = int(bins.max()) + 1
    offset = bins + np.arange(columns) * width
    joint = np.stack(
        [np.bincount(offset[factor == value].ravel(), minlength=columns * width) for value in np.unique(factor)],
        axis=-1,
    ).reshape(columns, width, -1)
    probability = joint / images
    independent = probability.sum(2, keepdims=True) * probability.sum(1, keepdims=True)
    ratio = np.divide(probability, independent, out=np.ones_like(probability), where=joint > 0)
    information: npt.NDArray[np.float64] = (probability * np.log(ratio)).sum((1, 2))
    return information


def mig(bins: Labels, factors: Labels) -> float:
    """Return the mutual information gap (Chen et al. 2018, arXiv 1802.04942).

    The mean over factors of (best - second best latent's information on it) / the factor's entropy.

    Args:
        bins: from `bin_latents`.
        factors: none of them constant.
    """
    gaps = []
    for factor in factors.T:
        information = np.sort(mutual_information(bins, factor))
        gaps.append((information[-1] - information[-2]) / mutual_information(factor[:, None], factor)[0])
    return float(np.mean(gaps))
