"""The linear VAE in closed form, from the principal components of the images and beta, before any training.

Lucas, Tucker, Grosse, Norouzi, "Don't blame the ELBO!", NeurIPS 2019 (arXiv 1911.02469): the optimum of a
linear-Gaussian VAE is probabilistic PCA (Tipping & Bishop 1999). With beta and the calibrated noise sigma^2 of
docs/objective.md, component i of variance lambda_i is kept iff lambda_i > beta sigma^2, the water level. Then

    posterior variance  s_i^2 = beta sigma^2 / lambda_i      encoder gain  sqrt((1 - s_i^2) / lambda_i)
    KL_i = -log(s_i)                                         decoder gain  sqrt(lambda_i (1 - s_i^2))
    sigma^2 D = sum_kept beta sigma^2 + sum_lost lambda_i    (each kept component leaves lambda_i s_i^2 of error)

Where the images are few, the principal components are those of a shrunk covariance (analysis/shrinkage.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

Spectrum = npt.NDArray[np.float64]
"""Variances of the principal components, descending, in squared pixel values summed over an image."""

LARGEST_SIDE = 64  # pixels; the components of larger images are those of their averaged-down versions
SMALLEST_SIGMA = 1 / (255 * math.sqrt(12))  # what rounding to 8 bits leaves
LARGEST_VARIANCE = 0.999  # of a posterior at the start: 1 would leave it without a gradient
SMALLEST_VARIANCE = 1e-8  # of a posterior, where beta is 0 and nothing else bounds it


@dataclass(frozen=True)
class LinearVAE:
    """The optimum.

    Attributes:
        posterior_variances: [latents], 1 for a unit that carries nothing.
        active_units: units that carry something.
        rate: KL, nats per image.
        sigma: root of the mean squared error of decoded draws, part of the pixel range.
        psnr: dB of decoded posterior means, on the images that the spectrum is of.
        beta: that leads here.
    """

    posterior_variances: Spectrum
    active_units: int
    rate: float
    sigma: float
    psnr: float
    beta: float

    def encoder_gains(self, eigenvalues: Spectrum) -> Spectrum:
        """Return [latents]: what a projection on the components is multiplied by; 0 for a unit that carries nothing."""
        return _safe_root((1 - self.posterior_variances) / np.maximum(eigenvalues, np.finfo(float).tiny))

    def decoder_gains(self, eigenvalues: Spectrum) -> Spectrum:
        """Return [latents]: what a latent is multiplied by on its way to its component."""
        return _safe_root((1 - self.posterior_variances) * eigenvalues)


def optimum(eigenvalues: Spectrum, rest: float, dimensions: int, beta: float) -> LinearVAE:
    """Return the optimal linear VAE at `beta`.

    Args:
        eigenvalues: [latents], the largest of the spectrum, descending.
        rest: variance of all components beyond these.
        dimensions: D, pixel values per image.
        beta: weight of the rate; 0 keeps everything.
    """
    counts = np.arange(len(eigenvalues) + 1)
    lost = rest + np.append(np.cumsum(eigenvalues[::-1])[::-1], 0.0)
    room = dimensions - counts * beta  # none left: so many components would be more noise than there are pixels
    levels = np.maximum(beta * lost / np.where(room > 0, room, np.inf), beta * SMALLEST_SIGMA**2)
    stands = (room > 0) & np.append(True, eigenvalues > levels[1:])
    kept = int(np.flatnonzero(stands)[-1])  # no component at all is always a solution
    beyond = rest + float(eigenvalues[kept:].sum())
    level = max(beta * beyond / (dimensions - kept * beta), beta * SMALLEST_SIGMA**2)
    return _at(level, kept, eigenvalues, beyond, dimensions, beta)


def at_level(eigenvalues: Spectrum, rest: float, dimensions: int, level: float) -> LinearVAE:
    """Return the optimum for a fixed water level, for objectives that fix the decoder's noise and do not calibrate it.

    Args:
        level: the variance below which a component is not worth its nats; `beta` of the result is the calibrated
            beta that leads to the same.
    """
    kept = int((eigenvalues > level).sum())
    lost = rest + float(eigenvalues[kept:].sum())
    sigma_square = max((kept * level + lost) / dimensions, SMALLEST_SIGMA**2)
    return _at(level, kept, eigenvalues, lost, dimensions, level / sigma_square)


def _at(level: float, kept: int, eigenvalues: Spectrum, lost: float, dimensions: int, beta: float) -> LinearVAE:
    variances = np.ones(len(eigenvalues))
    variances[:kept] = np.maximum(level / eigenvalues[:kept], SMALLEST_VARIANCE)
    error = lost + float((eigenvalues[:kept] * variances[:kept] ** 2).sum())
    return LinearVAE(
        posterior_variances=variances,
        active_units=kept,
        rate=float(-0.5 * np.log(variances).sum()),
        sigma=max(math.sqrt((kept * level + lost) / dimensions), SMALLEST_SIGMA),
        psnr=-10 * math.log10(max(error / dimensions, SMALLEST_SIGMA**2)),
        beta=beta,
    )


def _safe_root(values: Spectrum) -> Spectrum:
    return np.sqrt(np.maximum(values, 0.0))


@dataclass(frozen=True)
class PrincipalComponents:
    """Components of images that were averaged down to at most LARGEST_SIDE pixels a side.

    Attributes:
        mean: [channels, side, side].
        components: [count, channels, side, side], orthonormal as flattened vectors, by descending variance.
        eigenvalues: [count] variances in full-size pixels: an averaged pixel stands for all that it covers. Scaled to
            those of held-out images where the images are few.
        total: variance of a full-size image, summed over its pixel values.
        covered: pixels of a full-size image that one averaged pixel stands for, 1 up to LARGEST_SIDE.
        images: how many images (with their augmented versions) this was computed from.
        weights: of few images, those of the covariances that were mixed (analysis/shrinkage.py); empty for a PCA.
    """

    mean: Tensor
    components: Tensor
    eigenvalues: Spectrum
    total: float
    covered: float
    images: int
    weights: tuple[float, ...] = ()

    def to(self, device: torch.device) -> PrincipalComponents:
        """Return the same on another device."""
        return replace(self, mean=self.mean.to(device), components=self.components.to(device))

    def rest(self, count: int) -> float:
        """Return the variance beyond the first `count` components."""
        return max(self.total - float(self.eigenvalues[:count].sum()), 0.0)


def working_side(image_size: int) -> int:
    """Return height and width of the images that the components are of."""
    return image_size // -(-image_size // LARGEST_SIDE)


def shrink(images: Tensor, side: int) -> Tensor:
    """Shrink [n, channels, size, size] to [n, channels, side, side] by averaging; the same tensor where it fits."""
    size = images.shape[-1]
    if size == side:
        return images
    if size % side == 0:  # the adaptive one has no deterministic gradient on a GPU
        return F.avg_pool2d(images, size // side)
    return F.adaptive_avg_pool2d(images, side)


def enlarge(images: Tensor, size: int) -> Tensor:
    """Enlarge [n, channels, side, side] to [n, channels, size, size], bilinear; the same tensor where it fits."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)


def project(images: Tensor, basis: PrincipalComponents) -> Tensor:
    """Return coordinates [n, count] of images [n, channels, size, size]."""
    centered = shrink(images, basis.mean.shape[-1]) - basis.mean
    return centered.flatten(1) @ basis.components.flatten(1).T


def compose(coordinates: Tensor, basis: PrincipalComponents, size: int) -> Tensor:
    """Return images [n, channels, size, size] of coordinates [n, k]: the linear reconstruction from k components."""
    kept = basis.components[: coordinates.shape[1]].flatten(1)
    reconstruction = torch.addmm(basis.mean.flatten(), coordinates, kept).unflatten(1, basis.mean.shape)
    return enlarge(reconstruction, size)
