"""DCT components of natural images, lowest frequencies first: a linear basis that needs no images to be fitted."""

from __future__ import annotations

import math

import torch
from torch import Tensor

CHROMA_FACTOR = 12.0
"""Chroma of a frequency has about the variance of luma at this multiple of the squared frequency: 8 for
photographs, 16 for portraits and CIFAR-10 (docs/log.md)."""


def dct_components(channels: int, side: int, count: int) -> Tensor:
    """The first `count` components [count, channels, side, side], orthonormal as flattened vectors, in float32.

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
