"""Lap1: the absolute error of each level of a Laplacian pyramid, so that detail counts beside shade.

Bojanowski, Joulin, Lopez-Paz, Szlam, "Optimizing the latent space of generative networks", ICML 2018, arXiv
1707.05776; the pyramid is that of Burt & Adelson, "The Laplacian pyramid as a compact image code", 1983.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unified_vae.losses.term import DistortionTerm

_BINOMIAL = (6.0, 4.0, 1.0)  # Burt and Adelson's filter 1 4 6 4 1, from its centre outwards
_REST = 8  # pixels; an image of this side is not divided any further


def sides(size: int) -> list[int]:
    """Side of each level, finest first: 64, 32, 16 and the rest of 8 for 64 px; odd sides are rounded up."""
    levels = [size]
    while levels[-1] > _REST:
        levels.append((levels[-1] + 1) // 2)
    return levels


def halving(size: int) -> Tensor:
    """[ceil(size / 2), size]: every second value of the smoothed signal. Rows sum to 1, also at the borders."""
    return _rows_summing_to_1(_smoothing(size)[::2])


def doubling(size: int) -> Tensor:
    """[size, ceil(size / 2)]: the values between, interpolated by the same filter."""
    return _rows_summing_to_1(_smoothing(size)[:, ::2])


def _smoothing(size: int) -> Tensor:
    distance = (torch.arange(size)[:, None] - torch.arange(size)).abs()
    return torch.tensor([*_BINOMIAL, 0.0])[distance.clamp(max=len(_BINOMIAL))]


def _rows_summing_to_1(matrix: Tensor) -> Tensor:
    return matrix / matrix.sum(1, keepdim=True)


class Laplacian(DistortionTerm):
    """Sum over levels of the mean absolute error, the low-pass rest included.

    Lap1 weighs level j by 2^(2j). A level has 2^(2j) times fewer values than the image, so this sum divided by the
    number of pixel values is the sum of the levels' means.
    """

    degree = 1.0
    floor = 1.4e-3
    minimum_size = _REST + 1

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.sides = sides(image_size)
        for side in self.sides[:-1]:
            self.register_buffer(f"halve_{side}", halving(side), persistent=False)
            self.register_buffer(f"double_{side}", doubling(side), persistent=False)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """[batch, channels, side, side] of each level: what halving lost, finest first, and the rest."""
        levels = []
        for side in self.sides[:-1]:
            halve, double = self.get_buffer(f"halve_{side}"), self.get_buffer(f"double_{side}")
            smaller = halve @ images @ halve.T  # matrices: exact borders and odd sides, and the fastest on a CPU
            levels.append(images - double @ smaller @ double.T)
            images = smaller
        return [*levels, images]

    def forward(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """See `DistortionTerm.forward`. The pyramid is linear, so one of the error does for two of the images."""
        levels = self.pyramid(reconstruction - target)
        return torch.stack([level.abs().flatten(1).mean(1) for level in levels]).sum(0)
