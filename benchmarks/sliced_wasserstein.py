"""Sliced Wasserstein distance of Laplacian-pyramid patches (Karras et al. 2018, arXiv 1710.10196, section 5).

Feature-free: it compares two sets of images by their 7 x 7 neighbourhoods at each scale. Small means alike in looks
and variation. The constants are the paper's, but for the number of images, which is what there is; figures
of different numbers of images, or image sizes, are not comparable.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

PATCH = 7  # pixels a side
PATCHES_PER_IMAGE = 128  # at each level
DIRECTION_BATCHES, DIRECTIONS = 4, 128  # 512 projections in all
SMALLEST_LEVEL = 16  # pixels a side
UNIT = 1e3  # distances are given in thousandths, as in the paper

_LINE = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
_KERNEL = _LINE[:, None] * _LINE[None, :]


def distances(first: Tensor, second: Tensor, seed: int = 0) -> dict[str, float]:
    """The distance at each level, named by its pixels, and their `mean`; in thousandths.

    Args:
        first, second: float [n, channels, size, size], as many of each; `size` a power of two, at least 16.
        seed: decides the patches, which both sets give at the same places, and the directions.
    """
    if first.shape != second.shape:
        raise ValueError(f"the sets differ in shape: {list(first.shape)} and {list(second.shape)}")
    found = {}
    for one, other in zip(pyramid(first), pyramid(second), strict=True):
        size = one.shape[-1]
        pair = [descriptors(level, seed + size) for level in (one, other)]
        found[str(size)] = UNIT * sliced_distance(*pair, seed=seed + size)
    return {**found, "mean": float(np.mean(list(found.values())))}


def pyramid(pictures: Tensor) -> list[Tensor]:
    """Laplacian pyramid (Burt & Adelson 1983), finest first; the last level is the remaining low-pass image."""
    size = pictures.shape[-1]
    if size < SMALLEST_LEVEL or size & (size - 1):
        raise ValueError(f"images of {size} pixels: the pyramid needs a power of two, {SMALLEST_LEVEL} or more")
    levels = [pictures.float()]
    while levels[-1].shape[-1] > SMALLEST_LEVEL:
        smaller = _blur(levels[-1])[..., ::2, ::2]
        levels[-1] = levels[-1] - _enlarge(smaller)
        levels.append(smaller)
    return levels


def descriptors(level: Tensor, seed: int) -> Tensor:
    """Random patches of one level, each channel brought to mean 0 and deviation 1 over the set: [n * 128, c * 49]."""
    count, _, size, _ = level.shape
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(size - PATCH + 1, (2, count, PATCHES_PER_IMAGE), generator=generator)
    windows = level.unfold(2, PATCH, 1).unfold(3, PATCH, 1)  # [n, c, rows, columns, 7, 7], a view
    which = torch.arange(count)[:, None].expand(-1, PATCHES_PER_IMAGE)
    patches = windows[which, :, corners[0], corners[1]].flatten(0, 1)  # [n * 128, c, 7, 7]
    deviation, mean = torch.std_mean(patches, dim=(0, 2, 3), keepdim=True)
    return ((patches - mean) / deviation.clamp_min(1e-8)).flatten(1)


def sliced_distance(first: Tensor, second: Tensor, seed: int) -> float:
    """Mean over random directions of the one-dimensional Wasserstein distance of the projections."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(DIRECTION_BATCHES):
        directions = F.normalize(torch.randn(first.shape[1], DIRECTIONS, generator=generator), dim=0)
        one, other = (np.sort((directions.T @ rows.T).numpy(), axis=1) for rows in (first, second))
        found.append(np.abs(one - other).mean())
    return float(np.mean(found))


def _blur(pictures: Tensor, gain: float = 1.0) -> Tensor:
    channels = pictures.shape[1]
    kernel = (gain * _KERNEL).expand(channels, 1, -1, -1)
    return F.conv2d(F.pad(pictures, (2, 2, 2, 2), mode="reflect"), kernel, groups=channels)


def _enlarge(pictures: Tensor) -> Tensor:
    count, channels, height, width = pictures.shape
    spread = pictures.new_zeros(count, channels, 2 * height, 2 * width)
    spread[..., ::2, ::2] = pictures
    return _blur(spread, gain=4.0)
