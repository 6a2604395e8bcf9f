"""Principal components of the training images, or of their patches: what a model starts from and has to beat.

The PCA is randomized where images are many (Halko, Martinsson, Tropp, "Finding structure with randomness", SIAM Review
2011, arXiv 0909.4061), and of a shrunk covariance where they are few (analysis/shrinkage.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unified_vae.analysis.shrinkage import shrunk_components
from unified_vae.config.data import FEW_IMAGES_PER_LATENT, AugmentConfig
from unified_vae.core.linear_vae import PrincipalComponents, shrink, working_side
from unified_vae.core.rng import key, permutation
from unified_vae.data.augment import augment
from unified_vae.data.batches import gather
from unified_vae.data.dataset import PackedSplit

MAX_VALUES = 10_000 * 3 * 64 * 64  # of images and augmented versions: 0.5 GB
MAX_ROWS = 40_000  # the same, where images are small
MAX_VERSIONS = 8  # of one image
CHUNK_VALUES = 500 * 3 * 64 * 64  # of images augmented at a time
OVERSAMPLING = 16  # further directions that the randomized method follows and drops
POWER_ITERATIONS = 2
EXACT_ROWS = 2  # times the requested components: up to so many rows the exact method is as fast
GRAY = 0.5  # subtracted, so that squares of bright images keep their digits


def principal_components(
    split: PackedSplit,
    count: int,
    augmentation: AugmentConfig,
    seed: int,
    device: torch.device | None = None,
    latents: int | None = None,
) -> PrincipalComponents:
    """Return the first `count` components, or as many as the images have.

    Args:
        split: the training images; a random subset of them where they are many.
        count: requested components.
        augmentation: few images are seen in several versions where it changes them.
        seed: of the order, the augmentation and the randomized method. The global generator is left alone.
        device: where the sums are done, by default the CPU; the result lies on the CPU.
        latents: of the model that starts from the first of these. With fewer than FEW_IMAGES_PER_LATENT per latent, the
            components are those of a shrunk covariance, of the images without augmentation.
    """
    # The images at the size that is looked at, as many as the budget of values allows, and the variance at full size
    _, size, _, channels = split.images.shape
    side = working_side(size)
    max_rows = min(MAX_VALUES // (side**2 * channels), MAX_ROWS)
    numbers = permutation(key(seed, "principal components"), len(split))[:max_rows]
    is_few = latents is not None and 1 < len(numbers) < FEW_IMAGES_PER_LATENT * latents
    chunks: list[Tensor] = []
    squares, sums = 0.0, torch.zeros(1, dtype=torch.float64)
    changes = AugmentConfig() if is_few else augmentation
    for pixels in _augmented_chunks(split, np.sort(numbers), changes, max_rows, seed):
        sums = sums + pixels.sum(0, dtype=torch.float64)
        squares += float(pixels.square().sum(dtype=torch.float64))
        chunks.append(shrink(pixels, side))
    images = torch.cat(chunks)
    total = squares / len(images) - float((sums / len(images)).square().sum())
    covered = (size / images.shape[-1]) ** 2  # pixels that an averaged one stands for
    if latents is not None and is_few and not torch.equal(images, images[:1].expand_as(images)):
        pixels = (images * 255).round().to(torch.uint8)
        basis = shrunk_components(pixels, count, latents, seed, covered, device or torch.device("cpu"))
        averaged_out = total - covered * float(images.flatten(1).double().var(0, correction=0).sum())
        return replace(basis, total=basis.total + max(averaged_out, 0.0))

    rows = images.flatten(1).to(device or torch.device("cpu"))
    mean = rows.mean(0)
    rows -= mean
    singular, vectors = _truncated_svd(rows, min(count + OVERSAMPLING, *rows.shape), seed)
    kept = min(count, max(len(rows) - 1, 1), len(singular))
    return PrincipalComponents(
        mean=mean.cpu().unflatten(0, images.shape[1:]),
        components=vectors[:, :kept].T.contiguous().cpu().unflatten(1, images.shape[1:]),
        eigenvalues=(singular[:kept].cpu().double().square() * covered / len(rows)).numpy(),
        total=total,
        covered=covered,
        images=len(rows),
    )


def patch_components(
    split: PackedSplit,
    side: int,
    count: int,
    augmentation: AugmentConfig,
    seed: int,
    device: torch.device | None = None,
) -> PrincipalComponents:
    """Return the first `count` components of patches of `side` pixels, or as many as there are.

    This is what one position of a latent map sees, and the linear map that a model with such a map has to beat. All
    patches share their components, as all positions share a convolution's weights. Eigenvalues are of one patch.

    Args:
        split: the training images; a random subset of them where they are many.
        augmentation: few images are seen in several versions where it changes them.
        seed: of the choice of images and of the augmentation.
        device: where the sums are done, by default the CPU; the result lies on the CPU.
    """
    _, size, _, channels = split.images.shape
    max_rows = max(1, MAX_VALUES // (size**2 * channels))
    numbers = np.sort(permutation(key(seed, "principal components"), len(split))[:max_rows])
    length, images = channels * side**2, 0
    sums = torch.zeros(length, dtype=torch.float64)
    products = torch.zeros(length, length, dtype=torch.float64)
    for pixels in _augmented_chunks(split, numbers, augmentation, max_rows, seed):
        rows = extract_patches(pixels.to(device or torch.device("cpu")) - GRAY, side).flatten(1)
        sums += rows.sum(0, dtype=torch.float64).cpu()
        products += (rows.T @ rows).cpu().double()
        images += len(pixels)
    mean = sums / (images * (size // side) ** 2)
    covariance = products / (images * (size // side) ** 2) - torch.outer(mean, mean)
    values, vectors = torch.linalg.eigh(covariance)
    kept = min(count, length)
    shape = (channels, side, side)
    return PrincipalComponents(
        mean=(mean + GRAY).float().unflatten(0, shape),
        components=vectors.flip(1)[:, :kept].T.float().contiguous().unflatten(1, shape),
        eigenvalues=values.flip(0)[:kept].clamp_min(0).numpy(),
        total=float(covariance.trace()),
        covered=1.0,
        images=images,
    )


def extract_patches(images: Tensor, side: int) -> Tensor:
    """Cut images [n, channels, size, size] into patches [n * positions, channels, side, side], without overlap.

    Args:
        side: a divisor of the images' size.
    """
    columns = F.unfold(images, side, stride=side)
    return columns.transpose(1, 2).reshape(-1, images.shape[1], side, side)


def _truncated_svd(rows: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """The largest singular values [count], descending, and right singular vectors [values of a row, count] of `rows`.

    Exact where rows are few: 1,000 images of 64 px with 528 values in half of the time of the randomized method, whose
    last values are up to 4 % off where the spectrum falls slowly.
    """
    if len(rows) > min(EXACT_ROWS * count, rows.shape[1]):
        with torch.random.fork_rng(devices=[rows.device] if rows.is_cuda else []):
            torch.random.manual_seed(key(seed, "randomized PCA") % 2**63)
            _, singular, vectors = torch.svd_lowrank(rows, q=count, niter=POWER_ITERATIONS)
        return singular, vectors

    # By way of the products of all pairs of rows, in float64: squares of small values stand beside those of large ones
    wide = rows.double()
    _, left = torch.linalg.eigh(wide @ wide.T)  # ascending
    scaled = left[:, -count:].flip(1).to(rows.dtype).T @ rows
    vectors, triangle = torch.linalg.qr(scaled.T)  # orthogonal but for the rounding of the products
    signed = triangle.diagonal()
    order = signed.abs().argsort(descending=True)  # but for rounding it is so already
    return signed.abs()[order], (vectors * torch.where(signed < 0, -1.0, 1.0))[:, order]


def _augmented_chunks(
    split: PackedSplit, numbers: np.ndarray, augmentation: AugmentConfig, max_rows: int, seed: int
) -> Iterator[Tensor]:
    """Chunks [n, channels, size, size] in [0, 1] of the images `numbers`, in several versions up to `max_rows` in all.

    Where images are mirrored at random, each version comes with its mirror image: the PCA of that is the one that
    random draws approach (with 512 components of 9,000 CIFAR-10 images 31.29 dB, against 31.24 with 4 random draws of
    each and 31.09 with 1).
    """
    # Versions: number of the draw of the augmentation, and whether what comes of it is mirrored
    count = min(max_rows // len(numbers), MAX_VERSIONS)
    versions = [(draw, False) for draw in range(count)]
    if augmentation == AugmentConfig() or count < 2:
        versions = [(0, False)]
    elif augmentation.horizontal_flip:
        draws = 1 if augmentation == AugmentConfig(horizontal_flip=True) else count // 2
        versions = [(draw, mirrored) for draw in range(draws) for mirrored in (False, True)]

    chunk_size = max(1, CHUNK_VALUES // math.prod(split.images.shape[1:]))
    for draw, mirrored in versions:
        for start in range(0, len(numbers), chunk_size):
            chunk = numbers[start : start + chunk_size]
            raw = augment(gather(split, chunk), chunk, config=augmentation, seed=seed, epoch=draw)
            yield (raw.flip(3) if mirrored else raw).float() / 255
