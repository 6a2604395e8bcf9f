"""Linear bases of the training images as the network will see them: PCA of images or patches, with DCT components.

PCA is randomized where images are many (Halko, Martinsson, Tropp, "Finding structure with randomness", SIAM Review
2011, arXiv 0909.4061), and completed by DCT components where they are few.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unified_vae.config.data import AugmentConfig
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
ENOUGH_IMAGES = 16  # per latent, from which a PCA is not checked: CIFAR-10 needs between 6 and 12, portraits 3
FOLDS = 4  # each is held out in turn while the PCA is fitted on the others
FEW_IMAGES = 100  # up to here all folds are tried, beyond only the first: it holds out enough
TOLERANCE = 1.03  # held-out error of the PCA over that of the best basis up to which the PCA is taken as it is
MAX_OPTIMISM = 3.0  # the same error over that on the images fitted to, up to which the variances of the latter are kept
ROUNDING = 1e-5  # of products of components in float32
GRAY = 0.5  # subtracted, so that squares of bright images keep their digits
CHROMA_FACTOR = 12.0
"""Chroma of a frequency has about the variance of luma at this multiple of the squared frequency: 8 for
photographs, 16 for portraits and CIFAR-10 (docs/log.md)."""


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
        latents: of the model that starts from the first of these. Where the images do not support so many, judged on
            held-out ones among them, DCT components take the place of those that are not supported.
    """
    # The images at the size that is looked at, as many as the budget of values allows, and the variance at full size
    _, size, _, channels = split.images.shape
    side = working_side(size)
    max_rows = min(MAX_VALUES // (side**2 * channels), MAX_ROWS)
    numbers = permutation(key(seed, "principal components"), len(split))[:max_rows]
    chunks: list[Tensor] = []
    squares, sums = 0.0, torch.zeros(1, dtype=torch.float64)
    for pixels in _augmented_chunks(split, np.sort(numbers), augmentation, max_rows, seed):
        sums = sums + pixels.sum(0, dtype=torch.float64)
        squares += float(pixels.square().sum(dtype=torch.float64))
        chunks.append(shrink(pixels, side))
    images = torch.cat(chunks)
    total = squares / len(images) - float((sums / len(images)).square().sum())

    rows = images.flatten(1).to(device or torch.device("cpu"))
    mean = rows.mean(0)
    rows -= mean
    singular, vectors = _truncated_svd(rows, min(count + OVERSAMPLING, *rows.shape), seed)
    kept = min(count, max(len(rows) - 1, 1), len(singular))
    covered = (size / images.shape[-1]) ** 2  # pixels that an averaged one stands for
    basis = PrincipalComponents(
        mean=mean.cpu().unflatten(0, images.shape[1:]),
        components=vectors[:, :kept].T.contiguous().cpu().unflatten(1, images.shape[1:]),
        eigenvalues=(singular[:kept].cpu().double().square() * covered / len(rows)).numpy(),
        total=total,
        covered=covered,
        images=len(rows),
    )
    if latents is None or not 1 < len(numbers) < ENOUGH_IMAGES * latents or not rows.any():
        return basis
    return _complete_by_dct(basis, rows, len(numbers), min(latents, rows.shape[1]), min(count, rows.shape[1]), seed)


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


def dct_components(channels: int, side: int, count: int) -> Tensor:
    """Return the first `count` DCT components [count, channels, side, side], orthonormal as flattened vectors, float32.

    They are ordered by the variance that a 1/f^2 spectrum gives them, luma before chroma of the same frequency.

    Args:
        channels: 1, or 3 for RGB, whose components are of luma (R + G + B) or of one of two chroma axes.
        side: height and width in pixels.
        count: at most channels * side^2; fewer come back beyond that.
    """
    pixels = torch.arange(side, dtype=torch.float64)
    waves = torch.cos(math.pi * (pixels + 0.5) * pixels[:, None] / side) * math.sqrt(2 / side)
    waves[0] /= math.sqrt(2)
    axes = torch.eye(channels, dtype=torch.float64)
    if channels == 3:
        axes = torch.tensor([[1, 1, 1], [1, 0, -1], [1, -2, 1]], dtype=torch.float64)
        axes /= axes.norm(dim=1, keepdim=True)
    # the 1 keeps the mean color of an image, of frequency 0, from coming before all else
    falls = pixels[:, None].square() + pixels.square() + 1
    order = torch.stack([falls, *[CHROMA_FACTOR * falls] * (channels - 1)]).flatten().argsort(stable=True)[:count]
    axis, row, column = order // side**2, order // side % side, order % side
    return torch.einsum("kc,ky,kx->kcyx", axes[axis], waves[row], waves[column]).float()


def _complete_by_dct(
    basis: PrincipalComponents, rows: Tensor, images: int, latents: int, count: int, seed: int
) -> PrincipalComponents:
    """`basis` where held-out images support that many latents, else the part of it that they do support and the DCT.

    Args:
        basis: the PCA of `rows`.
        rows: [versions * images, values], centered, a version of all images after the other.
        latents: of the model that starts from the result.
        count: components of the result.
    """
    # Each fold as a PCA of the others and the DCT see it, in inner products: then each rank costs little to try
    dct = dct_components(len(basis.mean), basis.mean.shape[-1], count).flatten(1).to(rows)
    fold_of_row = torch.arange(len(rows), device=rows.device) % images % FOLDS
    tried = range(min(FOLDS, images)) if images <= FEW_IMAGES else range(1)
    folds, total, fitted_error = [], 0.0, 0.0
    for fold in tried:
        fitted, held_out = rows[fold_of_row != fold], rows[fold_of_row == fold]
        mean = fitted.mean(0)
        fitted -= mean
        held_out -= mean
        singular, vectors = _truncated_svd(fitted, min(latents + OVERSAMPLING, *fitted.shape), seed)
        vectors = vectors[:, : min(latents, len(fitted) - 1)]
        products = (held_out @ vectors, held_out @ dct.T, dct @ vectors)
        folds.append([part.double().cpu() for part in products])
        total += float(held_out.square().sum(dtype=torch.float64)) / len(held_out) / len(tried)
        explained = singular[: vectors.shape[1]].double().square().sum()
        fitted_error += float(fitted.square().sum(dtype=torch.float64) - explained) / len(fitted) / len(tried)

    # The rank whose best components leave the least of held-out images; the PCA as it is where it is as good
    ranks = {latents * part // 64 for part in (0, 1, 2, 3, *range(4, 65, 4))}
    max_rank = min(fold[0].shape[1] for fold in folds)
    variances = {
        rank: torch.stack([_held_out_variances(rank, *fold) for fold in folds]).mean(0)
        for rank in sorted(ranks)
        if rank <= max_rank
    }
    errors = {rank: total - float(values.topk(latents).values.sum()) for rank, values in variances.items()}
    rank = min(errors, key=lambda rank: errors[rank])
    if latents in variances:
        error = total - float(variances[latents][:latents].sum())
        if error <= TOLERANCE * errors[rank] and error <= MAX_OPTIMISM * fitted_error:
            return basis

    # Both together, orthogonal and by what they explain of held-out images, whose variances the start is planned with
    principal = basis.components.flatten(1)[:rank]
    vectors, triangle = torch.linalg.qr(torch.cat([principal, dct[: count - rank].cpu()]).T)
    vectors = (vectors * triangle.diagonal().sign()).T
    order = variances[rank].argsort(descending=True, stable=True)
    return replace(
        basis,
        components=torch.cat([principal, vectors[rank:]])[order].unflatten(1, basis.mean.shape),
        eigenvalues=(variances[rank][order] * basis.covered).numpy(),
        total=basis.total + basis.covered * (total - float(rows.square().sum(dtype=torch.float64)) / len(rows)),
        dct=int((order[:latents] >= rank).sum()),
    )


def _held_out_variances(rank: int, along_pca: Tensor, along_dct: Tensor, products: Tensor) -> Tensor:
    """Mean squares [count] of images along the first `rank` principal components, then along the first DCT components
    made orthogonal to those and to one another.

    Args:
        along_pca: [images, at least rank] coordinates.
        along_dct: [images, count] coordinates.
        products: [count, at least rank], of a DCT and a principal component.
    """
    free = along_dct.shape[1] - rank
    along, shared = along_pca[:, :rank], products[:free, :rank]
    gram = torch.eye(free, dtype=shared.dtype) * (1 + ROUNDING) - shared @ shared.T
    beyond = along_dct[:, :free] - along @ shared.T
    beyond = torch.linalg.solve_triangular(torch.linalg.cholesky(gram), beyond.T, upper=False).T
    return torch.cat([along, beyond], dim=1).square().mean(0)


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
