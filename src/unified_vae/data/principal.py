"""PCA of the training images as the network will see them, augmentation included; randomized where they are many,
completed by DCT components where they are few.

Halko, Martinsson, Tropp, "Finding structure with randomness", SIAM Review 2011 (arXiv 0909.4061).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from unified_vae.config.data import AugmentConfig
from unified_vae.core.counter import key, permutation
from unified_vae.core.dct import dct_components
from unified_vae.core.principal_components import PrincipalComponents, shrink, working_side
from unified_vae.data.augment import augment
from unified_vae.data.batches import gather
from unified_vae.data.dataset import PackedSplit

MOST_VALUES = 10_000 * 3 * 64 * 64  # of images and augmented versions: 0.5 GB
MOST_ROWS = 40_000  # the same, where images are small
MOST_VERSIONS = 8  # of one image
PIECE_VALUES = 500 * 3 * 64 * 64  # of images looked at in one piece
OVERSAMPLING = 16  # further directions that the randomized method follows and drops
POWER_ITERATIONS = 2
FEW_TIMES = 2  # so many times the components asked for are few rows
PLENTY = 16  # images per latent from which a PCA is not checked: CIFAR-10 needs between 6 and 12, portraits 3
FOLDS = 4  # each is held out in turn while the PCA is fitted on the others
FEW_IMAGES = 100  # up to here all folds are tried, beyond only the first: it holds out enough
TOLERANCE = 1.03  # held-out error of the PCA over that of the best basis up to which the PCA is taken as it is
MAX_OPTIMISM = 3.0  # the same error over that on the images fitted to, up to which the variances of the latter are kept
ROUNDING = 1e-5  # of products of components in float32


def principal_components(
    split: PackedSplit,
    count: int,
    augmentation: AugmentConfig,
    seed: int,
    device: torch.device | None = None,
    latents: int | None = None,
) -> PrincipalComponents:
    """The first `count` components, or as many as the images have.

    Args:
        split: the training images; a random part of them where they are many.
        count: components asked for.
        augmentation: few images are seen in several versions where it changes them.
        seed: of the order, the augmentation and the randomized method. The global generator is left alone.
        device: where the sums are done, the CPU unless told; the result lies on the CPU.
        latents: of the model that starts from the first of these. Where the images do not support so many, judged on
            held-out ones among them, DCT components take the place of those that are not supported.
    """
    most = _most_rows(split)
    numbers = permutation(key(seed, "principal components"), len(split))[:most]
    rows, total = _rows(split, np.sort(numbers), augmentation, most, seed)
    flat = rows.flatten(1).to(device or torch.device("cpu"))
    mean = flat.mean(0)
    flat -= mean
    singular, vectors = _leading(flat, min(count + OVERSAMPLING, *flat.shape), seed)
    kept = min(count, max(len(flat) - 1, 1), len(singular))
    covered = (split.images.shape[1] / rows.shape[-1]) ** 2  # pixels that an averaged one stands for
    basis = PrincipalComponents(
        mean=mean.cpu().unflatten(0, rows.shape[1:]),
        components=vectors[:, :kept].T.contiguous().cpu().unflatten(1, rows.shape[1:]),
        eigenvalues=(singular[:kept].cpu().double().square() * covered / len(flat)).numpy(),
        total=total,
        covered=covered,
        images=len(flat),
    )
    if latents is None or not 1 < len(numbers) < PLENTY * latents or not flat.any():
        return basis
    return _supported(basis, flat, len(numbers), min(latents, flat.shape[1]), min(count, flat.shape[1]), seed)


def _supported(
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
        singular, vectors = _leading(fitted, min(latents + OVERSAMPLING, *fitted.shape), seed)
        vectors = vectors[:, : min(latents, len(fitted) - 1)]
        products = (held_out @ vectors, held_out @ dct.T, dct @ vectors)
        folds.append([part.double().cpu() for part in products])
        total += float(held_out.square().sum(dtype=torch.float64)) / len(held_out) / len(tried)
        explained = singular[: vectors.shape[1]].double().square().sum()
        fitted_error += float(fitted.square().sum(dtype=torch.float64) - explained) / len(fitted) / len(tried)

    # The rank whose best components leave the least of held-out images; the PCA as it is where it is as good
    ranks = {latents * part // 64 for part in (0, 1, 2, 3, *range(4, 65, 4))}
    most = min(fold[0].shape[1] for fold in folds)
    variances = {
        rank: torch.stack([_held_out_variances(rank, *fold) for fold in folds]).mean(0)
        for rank in sorted(ranks)
        if rank <= most
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


def _leading(rows: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """The largest singular values [count], descending, and right singular vectors [values of a row, count] of `rows`.

    Exact where rows are few: 1,000 images of 64 px with 528 values in half of the time of the randomized method, whose
    last values are up to 4 % off where the spectrum falls slowly.
    """
    if len(rows) <= min(FEW_TIMES * count, rows.shape[1]):
        return _leading_of_few(rows, count)
    with torch.random.fork_rng(devices=[rows.device] if rows.is_cuda else []):
        torch.random.manual_seed(key(seed, "randomized PCA") % 2**63)
        _, singular, vectors = torch.svd_lowrank(rows, q=count, niter=POWER_ITERATIONS)
    return singular, vectors


def _leading_of_few(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The same by way of the products of all pairs of rows."""
    wide = rows.double()  # the squares of small values beside those of large ones
    _, left = torch.linalg.eigh(wide @ wide.T)  # ascending
    pictures = left[:, -count:].flip(1).to(rows.dtype).T @ rows
    vectors, triangle = torch.linalg.qr(pictures.T)  # orthogonal but for the rounding of the products
    signed = triangle.diagonal()
    order = signed.abs().argsort(descending=True)  # but for rounding it is so already
    return signed.abs()[order], (vectors * torch.where(signed < 0, -1.0, 1.0))[:, order]


def _most_rows(split: PackedSplit) -> int:
    """As many images as the budget of values allows at the size that is looked at."""
    _, height, _, channels = split.images.shape
    return min(MOST_VALUES // (working_side(height) ** 2 * channels), MOST_ROWS)


@dataclass(frozen=True)
class Version:
    """Number of the draw of the augmentation, and whether what comes of it is mirrored."""

    draw: int
    mirrored: bool = False


def versions(most: int, augmentation: AugmentConfig) -> list[Version]:
    """The versions in which each image is seen, at most `most` but at least one.

    Where images are mirrored at random, each version comes with its mirror image: the PCA of that is the one that
    random draws approach (with 512 components of 9,000 CIFAR-10 images 31.29 dB, against 31.24 with 4 random draws of
    each and 31.09 with 1).
    """
    if augmentation == AugmentConfig() or most < 2:
        return [Version(0)]
    if not augmentation.horizontal_flip:
        return [Version(draw) for draw in range(min(most, MOST_VERSIONS))]
    only = augmentation == AugmentConfig(horizontal_flip=True)
    draws = 1 if only else min(most, MOST_VERSIONS) // 2
    return [Version(draw, mirrored) for draw in range(draws) for mirrored in (False, True)]


def seen(
    split: PackedSplit, numbers: np.ndarray, augmentation: AugmentConfig, most: int, seed: int
) -> Iterator[Tensor]:
    """The images `numbers` in pieces [n, channels, size, size] in [0, 1], in several versions up to `most` in all."""
    piece = max(1, PIECE_VALUES // math.prod(split.images.shape[1:]))
    for version in versions(most // len(numbers), augmentation):
        for start in range(0, len(numbers), piece):
            some = numbers[start : start + piece]
            raw = augment(gather(split, some), some, config=augmentation, seed=seed, epoch=version.draw)
            yield (raw.flip(3) if version.mirrored else raw).float() / 255


def _rows(
    split: PackedSplit, numbers: np.ndarray, augmentation: AugmentConfig, most: int, seed: int
) -> tuple[Tensor, float]:
    """Averaged-down images [n * versions, channels, side, side], and the variance of the full-size ones."""
    side = working_side(split.images.shape[1])
    pieces, images, squares, sums = [], 0, 0.0, None
    for pixels in seen(split, numbers, augmentation, most, seed):
        total = pixels.sum(0, dtype=torch.float64)
        sums = total if sums is None else sums + total
        squares += float(pixels.square().sum(dtype=torch.float64))
        images += len(pixels)
        pieces.append(shrink(pixels, side))
    assert sums is not None
    return torch.cat(pieces), squares / images - float((sums / images).square().sum())
