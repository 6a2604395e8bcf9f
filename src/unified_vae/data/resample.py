"""Turned, scaled and shifted images with their sharpness kept: one resampling for all changes of geometry.

Bilinear resampling at random places leaves about half of the energy of fine detail (beyond half the Nyquist
frequency), bicubic four fifths, and a VAE would learn that blur. So the images are first doubled with a
windowed sinc, as in the augmentation of StyleGAN2-ADA (Karras et al. 2020, arXiv 2006.06676), and sampled
bicubically from there, which keeps all of it.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from unified_vae.core.device import to_device

TAPS = 8  # pixels on either side that a value between two pixels is made of
WINDOW = 4.0  # Kaiser's beta
AT_ONCE = 1 << 23  # values of doubled images held at a time: 32 MiB


def resample(pixels: Tensor, maps: npt.NDArray[np.float64]) -> Tensor:
    """The images as seen through affine maps, mirrored beyond their edges.

    A map that leads to pixel centres gives their very values, so that whole-pixel shifts lose nothing.

    Args:
        pixels: float32 [n, channels, height, width], contiguous.
        maps: [n, 2, 3], from a place (x, y, 1) in the result to the place (x, y) that is seen there; the edges
            of an image are at -1 and 1.

    Returns:
        float32 of the same shape; values may overshoot their range as a sinc does.
    """
    onto = to_device(torch.from_numpy(maps).float(), pixels.device)  # float32: MPS has no float64
    pieces = min(len(pixels), math.ceil(4 * pixels.numel() / AT_ONCE))
    batches = zip(pixels.tensor_split(pieces), onto.tensor_split(pieces), strict=True)
    return torch.cat([_sampled(some, of_them) for some, of_them in batches])


def _sampled(pixels: Tensor, maps: Tensor) -> Tensor:
    n, channels, height, width = pixels.shape
    fine = _doubled(pixels.reshape(n * channels, height, width)).unflatten(0, (n, channels))
    places = _places(maps, height, width)
    return F.grid_sample(fine, places, mode="bicubic", padding_mode="reflection", align_corners=True)


def _places(maps: Tensor, height: int, width: int) -> Tensor:
    """Where each pixel looks, [n, height, width, 2]; by elementwise steps, so alike in a batch of any size."""
    x = (2 * torch.arange(width, device=maps.device) + 1) / width - 1
    y = ((2 * torch.arange(height, device=maps.device) + 1) / height - 1)[:, None]
    a, b, c = maps[:, :, :, None, None].unbind(2)  # each [n, 2, 1, 1]
    return (a * x + b * y + c).permute(0, 2, 3, 1)


def _doubled(planes: Tensor) -> Tensor:
    """[m, height, width] -> [m, 2 height + 1, 2 width + 1], from edge to edge in steps of half a pixel.

    The first and last rows and columns lie on the edges, so that `grid_sample` mirrors there. bmm computes each
    plane for itself, where a single matrix product might round differently in a batch of another size.
    """
    m, height, width = planes.shape
    across = _doubling(width, planes.device).T.expand(m, -1, -1)
    down = _doubling(height, planes.device).expand(m, -1, -1)
    return torch.bmm(down, torch.bmm(planes, across))


@lru_cache(maxsize=8)
def _doubling(size: int, device: torch.device) -> Tensor:
    """The matrix [2 size + 1, size] from pixels to half pixels; the pixels themselves are kept as they are."""
    offset = np.arange(1, TAPS + 1) - 0.5
    window = np.i0(WINDOW * np.sqrt(1 - (offset / TAPS) ** 2)) / np.i0(WINDOW)
    weights = np.sinc(offset) * window
    weights /= 2 * weights.sum()  # a plain surface stays as it is
    matrix = np.zeros((2 * size + 1, size))
    matrix[2 * np.arange(size) + 1, np.arange(size)] = 1
    between = np.arange(size + 1)  # half way between the pixels `between` - 1 and `between`
    for tap, weight in enumerate(weights):
        for neighbour in (between - 1 - tap, between + tap):
            np.add.at(matrix, (2 * between, _mirrored(neighbour, size)), weight)
    return torch.from_numpy(matrix).float().to(device)


def _mirrored(places: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    """Pixel numbers beyond the edges as those of the pixels mirrored there: -1 is 0, -2 is 1."""
    around = places % (2 * size)
    return np.where(around < size, around, 2 * size - 1 - around)
