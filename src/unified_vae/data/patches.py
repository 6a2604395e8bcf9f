"""PCA of the patches of images: what one position of a latent map sees, and the linear map that a model with such a map
has to beat. All patches share their components, as all positions share a convolution's weights.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unified_vae.config.data import AugmentConfig
from unified_vae.core.counter import key, permutation
from unified_vae.core.principal_components import PrincipalComponents
from unified_vae.data.dataset import PackedSplit
from unified_vae.data.principal import MOST_VALUES, seen

GREY = 0.5  # taken off, so that squares of bright images keep their digits


def patches(images: Tensor, side: int) -> Tensor:
    """Images [n, channels, size, size] -> patches [n * positions, channels, side, side], without overlap.

    Args:
        side: a divisor of the images' size.
    """
    channels = images.shape[1]
    columns = F.unfold(images, side, stride=side)
    return columns.transpose(1, 2).reshape(-1, channels, side, side)


def patch_components(
    split: PackedSplit,
    side: int,
    count: int,
    augmentation: AugmentConfig,
    seed: int,
    device: torch.device | None = None,
) -> PrincipalComponents:
    """The first `count` components of patches of `side` pixels, or as many as there are; eigenvalues are of one patch.

    Args:
        split: the training images; a random part of them where they are many.
        augmentation: few images are seen in several versions where it changes them.
        seed: of the choice of images and of the augmentation.
        device: where the sums are done, the CPU unless told; the result lies on the CPU.
    """
    _, size, _, channels = split.images.shape
    most = max(1, MOST_VALUES // (size**2 * channels))
    numbers = np.sort(permutation(key(seed, "principal components"), len(split))[:most])
    place = device or torch.device("cpu")
    length, images = channels * side**2, 0
    sums = torch.zeros(length, dtype=torch.float64)
    products = torch.zeros(length, length, dtype=torch.float64)
    for pixels in seen(split, numbers, augmentation, most, seed):
        rows = patches(pixels.to(place) - GREY, side).flatten(1)
        sums += rows.sum(0, dtype=torch.float64).cpu()
        products += (rows.T @ rows).cpu().double()
        images += len(pixels)
    mean = sums / (images * (size // side) ** 2)
    covariance = products / (images * (size // side) ** 2) - torch.outer(mean, mean)
    values, vectors = torch.linalg.eigh(covariance)
    kept = min(count, length)
    shape = (channels, side, side)
    return PrincipalComponents(
        mean=(mean + GREY).float().unflatten(0, shape),
        components=vectors.flip(1)[:, :kept].T.float().contiguous().unflatten(1, shape),
        eigenvalues=values.flip(0)[:kept].clamp_min(0).numpy(),
        total=float(covariance.trace()),
        covered=1.0,
        images=images,
    )
