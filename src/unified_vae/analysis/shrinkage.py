"""Principal components of few images: of their covariance, shrunk toward what is likely in unseen images.

The covariance is a weighted sum of four:

- of the images;
- of copies shifted by a few pixels;
- of copies that are mirrored, shifted and scaled as well;
- of a smooth spectrum: independent DCT coefficients of luma and two chroma axes, whose variances are averaged over
  cells of similar frequency, as the statistics of natural images are stationary (Field 1987).

The weights maximize the likelihood of held-out images, by the MM algorithm for variance components (Zhou, Hu, Zhou,
Lange 2019, arXiv 1509.07426). The result is up to 1.5 dB above the best of a PCA, a PCA of copies, the DCT and a PCA
completed by the DCT, on portraits, photographs and CIFAR-10 (docs/log.md).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from unified_vae.config.data import AffineConfig, AugmentConfig
from unified_vae.core.linear_vae import PrincipalComponents
from unified_vae.core.rng import key
from unified_vae.data.augment import augment

COPIES = (
    AugmentConfig(affine=AffineConfig(translate=1 / 16)),
    AugmentConfig(horizontal_flip=True, affine=AffineConfig(translate=1 / 16, scale=0.15)),
)
MAX_COPIES = 1600  # of each kind
MAX_COPIES_OF_IMAGE = 24
FOLDS = 4
FEW_IMAGES = 100  # up to here two folds are held out in turn, beyond one: it has enough images
LOWEST_STEP, CELL_GROWTH, CELLS = 3.5, 1.25, 24  # frequencies below 3.5 are cells of their own, then cells widen
FITTED_COORDINATES, MAX_FITTED_COORDINATES = 2, 512  # per latent and in all: those of the highest variance
COORDINATES, MIN_COORDINATES = 5, 2048  # per component and in all: components have next to nothing in the others
WEIGHT_ITERATIONS = 20
POWER_ITERATIONS = 2
OVERSAMPLING = 32
ROUNDING = 1 / (12 * 255**2)  # variance of a pixel value that is rounded to 8 bits


def shrunk_components(
    images: Tensor, count: int, latents: int, seed: int, covered: float, device: torch.device
) -> PrincipalComponents:
    """Return the first `count` components of the covariance that fits held-out images best.

    Eigenvalues and total are scaled to what held-out images have along and beyond the first `latents` components.

    Args:
        images: uint8 [n, channels, side, side], at least 2.
        count: components, at least `latents`.
        latents: of the model that starts from the first of these.
        seed: of the copies. The global generator is left alone.
        covered: pixels of a full-size image that a pixel stands for.
        device: where the sums are done; the result lies on the CPU.
    """
    _, channels, side, _ = images.shape
    axes, waves = color_axes(channels).to(device), dct_matrix(side).to(device)

    def transform(pixels: Tensor) -> Tensor:
        luma_chroma = torch.einsum("nchw,ac->nahw", pixels.to(device).float() / 255, axes)
        return (waves @ luma_chroma @ waves.T).flatten(1)

    # The images and their copies as DCT coefficients, of the frequencies that components of such images have
    coefficients = transform(images)
    count, latents = (min(number, coefficients.shape[1]) for number in (count, latents))
    whole_mean = coefficients.mean(0)
    variances = smooth_spectrum(coefficients - whole_mean, channels, side)
    order = variances.argsort(descending=True)[: max(COORDINATES * count, MIN_COORDINATES)]
    used = np.arange(min(len(images), MAX_COPIES))
    sources, sets = [np.arange(len(images))], [coefficients[:, order]]
    for config in COPIES:
        draws = range(max(1, min(MAX_COPIES_OF_IMAGE, MAX_COPIES // len(images))))
        copies = [augment(images[used], used, config=config, seed=key(seed, "copies"), epoch=draw) for draw in draws]
        sets.append(torch.cat([transform(batch)[:, order] for batch in copies]))
        sources.append(np.tile(used, len(copies)))

    def rows_without(fold: int | None) -> list[Tensor]:
        """The rows of each set but for a fold, scaled so that rows.T @ rows is the set's covariance."""
        kept = [np.ones(len(each), bool) if fold is None else each % FOLDS != fold for each in sources]
        rows = [each[torch.from_numpy(mask).to(device)] for each, mask in zip(sets, kept, strict=True)]
        mean = rows[0].mean(0)
        return [(each - mean) / math.sqrt(len(each)) for each in rows]

    # Weights by held-out likelihood, then how much of held-out images lies along and beyond the components
    tried = range(2 if len(images) <= FEW_IMAGES else 1)
    fitted = order[: min(FITTED_COORDINATES * latents, MAX_FITTED_COORDINATES)]
    prior, folds = variances[order], []
    for fold in tried:
        is_held_out = torch.arange(len(images), device=device) % FOLDS == fold
        held_out = coefficients[is_held_out] - coefficients[~is_held_out].mean(0)
        folds.append((rows_without(fold), held_out))
    weights = _fit_weights([(rows, held_out[:, order]) for rows, held_out in folds], prior, len(fitted))
    scale = beyond = 0.0
    for rows, held_out in folds:
        vectors, values = _top_eigenvectors(rows, prior, weights, latents, seed)
        along = (held_out[:, order] @ vectors).double().square().sum(1).mean()
        scale += float(along / values.sum().double()) / len(folds)
        beyond += float(held_out.double().square().sum(1).mean() - along) / len(folds)

    # The components of all images, as pixels
    vectors, values = _top_eigenvectors(rows_without(None), prior, weights, count, seed)
    basis = torch.zeros(count, len(variances), device=device)
    basis[:, order] = vectors.T
    eigenvalues = values.double().cpu().numpy() * scale

    def to_pixels(rows: Tensor) -> Tensor:
        maps = waves.T @ rows.unflatten(1, (channels, side, side)) @ waves
        return torch.einsum("nahw,ac->nchw", maps, axes).cpu()

    return PrincipalComponents(
        mean=to_pixels(whole_mean[None])[0],
        components=to_pixels(basis).contiguous(),
        eigenvalues=eigenvalues * covered,
        total=covered * (beyond + float(eigenvalues[:latents].sum())),
        covered=covered,
        images=len(images),
        weights=tuple(float(weight) for weight in weights),
    )


def color_axes(channels: int) -> Tensor:
    """Orthonormal axes [channels, channels] of color: luma (R + G + B) and two of chroma for RGB, else the channels."""
    if channels != 3:
        return torch.eye(channels)
    axes = torch.tensor([[1, 1, 1], [1, 0, -1], [1, -2, 1]], dtype=torch.float64)
    return (axes / axes.norm(dim=1, keepdim=True)).float()


def dct_matrix(side: int) -> Tensor:
    """Return the orthonormal DCT-II [frequencies, pixels] of `side` pixels."""
    pixels = torch.arange(side, dtype=torch.float64)
    waves = torch.cos(math.pi * (pixels + 0.5) * pixels[:, None] / side) * math.sqrt(2 / side)
    waves[0] /= math.sqrt(2)
    return waves.float()


def smooth_spectrum(coefficients: Tensor, channels: int, side: int) -> Tensor:
    """Average the variances of centered DCT coefficients [n, channels * side^2] over cells of similar frequency."""
    edges = [0.5, 1.5, 2.5, *(LOWEST_STEP * CELL_GROWTH**step for step in range(CELLS))]
    band = torch.bucketize(torch.arange(side).float(), torch.tensor(edges)).to(coefficients.device)
    cell = (band[:, None] * (len(edges) + 1) + band).flatten()
    powers = coefficients.square().mean(0).view(channels, side**2)
    sums = powers.new_zeros(channels, (len(edges) + 1) ** 2).index_add_(1, cell, powers)
    return (sums / cell.bincount(minlength=sums.shape[1]).clamp_min(1))[:, cell].flatten() + ROUNDING


def _fit_weights(folds: list[tuple[list[Tensor], Tensor]], prior: Tensor, coordinates: int) -> Tensor:
    """The weights of the covariances that maximize the likelihood of held-out images in the first coordinates.

    Args:
        folds: for each fold the scaled rows of each set, and the held-out images.
        prior: variances of the smooth spectrum.
    """
    prepared = []
    for sets, held_out in folds:
        covariances = [(rows := each[:, :coordinates]).T @ rows for each in sets]
        prepared.append(([*covariances, torch.diag(prior[:coordinates])], held_out[:, :coordinates].double().T))
    prepared = [([each.double() for each in covariances], held_out) for covariances, held_out in prepared]
    noise = ROUNDING * torch.eye(len(prior[:coordinates]), dtype=torch.float64, device=prior.device)
    weights = torch.full((len(prepared[0][0]),), 1 / len(prepared[0][0]), dtype=torch.float64)
    for _ in range(WEIGHT_ITERATIONS):
        explained, expected = torch.zeros_like(weights), torch.zeros_like(weights)
        for covariances, held_out in prepared:
            model = sum((w * each for w, each in zip(weights.tolist(), covariances, strict=True)), noise)
            inverse = torch.cholesky_inverse(torch.linalg.cholesky(model))
            whitened = inverse @ held_out
            for number, each in enumerate(covariances):
                explained[number] += float((whitened * (each @ whitened)).sum()) / held_out.shape[1]
                expected[number] += float((inverse * each).sum())
        weights *= (explained / expected.clamp_min(1e-12)).sqrt()
    return weights


def _top_eigenvectors(
    sets: list[Tensor], prior: Tensor, weights: Tensor, count: int, seed: int
) -> tuple[Tensor, Tensor]:
    """The first eigenvectors [coordinates, count] and eigenvalues [count], descending, of the weighted covariance.

    By subspace iteration (Halko, Martinsson, Tropp 2011, arXiv 0909.4061); the covariance is never formed.
    """
    rows = torch.cat([each * float(weight) ** 0.5 for each, weight in zip(sets, weights, strict=False)])
    diagonal = prior * float(weights[-1])
    generator = torch.Generator().manual_seed(key(seed, "shrunk components") % 2**63)
    size = min(count + OVERSAMPLING, len(prior))
    vectors = torch.randn(len(prior), size, generator=generator).to(prior.device)
    for _ in range(POWER_ITERATIONS):
        vectors, _ = torch.linalg.qr(diagonal[:, None] * vectors + rows.T @ (rows @ vectors))
    inner = vectors.T @ (diagonal[:, None] * vectors + rows.T @ (rows @ vectors))
    values, rotation = torch.linalg.eigh((inner + inner.T).double() / 2)
    return vectors @ rotation.flip(1)[:, :count].to(vectors), values.flip(0)[:count].clamp_min(0)
