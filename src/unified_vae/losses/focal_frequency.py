"""Focal frequency loss: squared error of the spectrum, weighed towards the frequencies that are furthest off.

Jiang, Dai, Wu, Loy, "Focal frequency loss for image reconstruction and synthesis", ICCV 2021, arXiv 2012.12821.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unified_vae.losses.term import DistortionTerm

_NO_ERROR = torch.finfo(torch.float32).tiny  # keeps 0/0 out of the weights of equal images


class FocalFrequency(DistortionTerm):
    """Mean over frequencies of weight * |error's spectrum|^2, the spectrum taken of the whole image.

    The weight is (|error's spectrum| / its greatest value)^alpha, of each image and channel by itself. It takes
    no gradient. At alpha 0 this is the mean squared error (Parseval).
    """

    degree = 2.0  # exactly: the weights do not change when the error is scaled
    floor = 6e-7

    def __init__(self, alpha: float) -> None:
        """Args:
        alpha: how much the worst frequencies are preferred; the paper's experiments take 1.
        """
        super().__init__()
        self.alpha = alpha

    def forward(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """See `DistortionTerm.forward`."""
        width = target.shape[-1]
        spectrum = torch.fft.rfft2(reconstruction - target, norm="ortho")  # [B, C, H, W // 2 + 1], linear
        power = spectrum.real.square() + spectrum.imag.square()
        weighted = (self._weights(power.detach()) * power).sum(2) * _multiplicity(width, power)
        return weighted.sum(2).mean(1) / (target.shape[-2] * width)

    def _weights(self, power: Tensor) -> Tensor:
        """[B, C, H, W'], 0 to 1."""
        return (power / power.amax((2, 3), keepdim=True).clamp(min=_NO_ERROR)) ** (self.alpha / 2)


def _multiplicity(width: int, like: Tensor) -> Tensor:
    """How often each column of the half spectrum of a real image stands in the whole one: once or twice."""
    columns = torch.arange(width // 2 + 1, device=like.device)
    alone = (columns == 0) | (2 * columns == width)
    return torch.where(alone, 1.0, 2.0)
