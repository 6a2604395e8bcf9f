"""Sliced Wasserstein distance of Laplacian-pyramid patches (Karras et al. 2018, arXiv 1710.10196, section 5).

Feature-free: it compares two sets of images by their 7 x 7 neighbourhoods at each scale. Small means alike in looks
and variation. The constants are the paper's, but for the number of images, which is what there is; figures
of different numbers of images, or image sizes, are not comparable.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

PATCH = 7  # pixels a side
PATCHES_PER_IMAGE = 128  # at each level
DIRECTION_BATCHES, DIRECTIONS = 4, 128  # 512 projections in all
SMALLEST_LEVEL = 16  # pixels a side
UNIT = 1e3  # distances are given in thousandths, as in the paper
SPREAD_DIRECTIONS = 32  # along which resamples are compared: their spread needs fewer than their value

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
        patches, others = (descriptors(level, seed + size) for level in (one, other))
        found[str(size)] = UNIT * sliced_distance(patches, others, seed=seed + size)
    return {**found, "mean": float(np.mean(list(found.values())))}


def means_of_resamples(
    first: Tensor, second: Tensor, draws: Iterable[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]], seed: int = 0
) -> list[float]:
    """The `mean` of `distances`, along fewer directions, for each pair of resamples of the sets' images."""
    levels = []
    for one, other in zip(pyramid(first), pyramid(second), strict=True):
        size = one.shape[-1]
        directions = _directions(one.shape[1] * PATCH**2, SPREAD_DIRECTIONS, torch.Generator().manual_seed(seed + size))
        pair = [
            (directions.T @ descriptors(level, seed + size).T).unflatten(1, (len(first), -1)).numpy()
            for level in (one, other)
        ]
        levels.append(pair)
    return [float(np.mean([UNIT * _gap(one[:, a], other[:, b]) for one, other in levels])) for a, b in draws]


def is_measurable(size: int) -> bool:
    """Whether images of this side have a pyramid."""
    return size >= SMALLEST_LEVEL and size & (size - 1) == 0


def pyramid(pictures: Tensor) -> list[Tensor]:
    """Laplacian pyramid (Burt & Adelson 1983), finest first; the last level is the remaining low-pass image."""
    size = pictures.shape[-1]
    if not is_measurable(size):
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
        directions = _directions(first.shape[1], DIRECTIONS, generator)
        found.append(_gap(*((directions.T @ rows.T).numpy() for rows in (first, second))))
    return float(np.mean(found))


def _directions(dimensions: int, count: int, generator: torch.Generator) -> Tensor:
    """Random unit vectors: [dimensions, count]."""
    return F.normalize(torch.randn(dimensions, count, generator=generator), dim=0)


def _gap(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    """Mean distance of the sorted numbers of each row: [rows, ...] both."""
    first, second = (np.sort(rows.reshape(len(rows), -1), axis=1) for rows in (one, other))
    return float(np.abs(first - second).mean())


def _blur(pictures: Tensor, gain: float = 1.0) -> Tensor:
    channels = pictures.shape[1]
    kernel = (gain * _KERNEL).expand(channels, 1, -1, -1)
    return F.conv2d(F.pad(pictures, (2, 2, 2, 2), mode="reflect"), kernel, groups=channels)


def _enlarge(pictures: Tensor) -> Tensor:
    count, channels, height, width = pictures.shape
    spread = pictures.new_zeros(count, channels, 2 * height, 2 * width)
    spread[..., ::2, ::2] = pictures
    return _blur(spread, gain=4.0)
