"""1 - HaarPSI: a perceptual distance made of Haar wavelets alone, so it needs no pretrained weights.

Reisenhofer, Bosse, Kutyniok, Wiegand, "A Haar wavelet-based perceptual similarity index for image quality
assessment", Signal Processing: Image Communication 2018, arXiv 1607.06140.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from unified_vae.losses.term import DistortionTerm

_C = 30.0  # constants that the authors fitted to human opinions, for pixels in 0..255
_ALPHA = 4.2
_EQUAL = 1 / (1 + math.exp(-_ALPHA))  # the logistic of similarity 1
_SCALES = (2, 4, 8)  # side of each Haar filter: two high frequencies to compare, one low to weigh with
_WEIGHT_OF_NOTHING = 1e-6  # where no filter answers (black on black), the distance is 0 instead of 0/0
# National Television System Committee, 1953: luma, in-phase, quadrature.
_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


def _filter_same(images: Tensor, kernels: Tensor) -> Tensor:
    """[B, 1, H, W] filtered by [K, 1, k, k], k even, to [B, K, H, W] with zeros around the image."""
    before, after = kernels.shape[-1] // 2 - 1, kernels.shape[-1] // 2
    return F.conv2d(F.pad(images, (before, after, before, after)), kernels)


def _dissimilarity(a: Tensor, b: Tensor) -> Tensor:
    """1 - (2ab + C) / (a^2 + b^2 + C) of two magnitudes: 0 for equal ones, up to 1."""
    return (a - b).square() / (a.square() + b.square() + _C)


class HaarPSI(DistortionTerm):
    """1 - HaarPSI, from 0 (equal) to 1; colour by the paper's extension to YIQ."""

    degree = 1.4
    floor = 1e-4
    minimum_size = 16  # the largest filter covers the halved image

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("yiq", torch.tensor(_YIQ)[:, :, None, None], persistent=False)
        for side in _SCALES:
            horizontal = torch.full((side, side), 1 / side)
            horizontal[side // 2 :] *= -1
            kernels = torch.stack([horizontal, horizontal.T])[:, None]
            self.register_buffer(f"haar_{side}", kernels, persistent=False)

    def _seen(self, images: Tensor) -> Tensor:
        """Grey or YIQ in 0..255, halved as by a viewer's distance."""
        colours = F.conv2d(images, self.get_buffer("yiq")) if images.shape[1] == 3 else images
        height, width = images.shape[-2:]
        return F.avg_pool2d(F.pad(255 * colours, (0, width % 2, 0, height % 2)), 2)

    def _magnitudes(self, luma: Tensor) -> list[Tensor]:
        """Magnitudes of the Haar coefficients at each scale, [B, 2 orientations, H, W]."""
        return [_filter_same(luma, self.get_buffer(f"haar_{side}")).abs() for side in _SCALES]

    def forward(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """See `DistortionTerm.forward`. Grey or RGB."""
        seen, wanted = self._seen(reconstruction), self._seen(target)
        *high, low = self._magnitudes(seen[:, :1])
        *wanted_high, wanted_low = self._magnitudes(wanted[:, :1])
        unlike = torch.stack([_dissimilarity(a, b) for a, b in zip(high, wanted_high, strict=True)]).mean(0)
        weight = torch.maximum(low, wanted_low)  # [B, 2, H, W]
        if seen.shape[1] == 3:
            unlike = torch.cat([unlike, _unlike_colour(seen[:, 1:], wanted[:, 1:])], 1)
            weight = torch.cat([weight, weight.mean(1, keepdim=True)], 1)
        return _pooled(unlike, weight)


def _unlike_colour(chroma: Tensor, wanted: Tensor) -> Tensor:
    """Dissimilarity of the locally averaged I and Q, [B, 1, H, W]."""
    mean, wanted_mean = (F.avg_pool2d(F.pad(c, (0, 1, 0, 1)), 2, stride=1).abs() for c in (chroma, wanted))
    return _dissimilarity(mean, wanted_mean).mean(1, keepdim=True)


def _pooled(unlike: Tensor, weight: Tensor) -> Tensor:
    """1 - HaarPSI of each image, [B]: similarities through a logistic, averaged by weight, and back.

    HaarPSI = (logit(mean of l(1 - unlike)) / alpha)^2 with l(t) = sigmoid(alpha t). Written in differences
    from l(1), because 1 - HaarPSI of nearly equal images would otherwise be rounding noise of either sign:
    l(1) - l(1 - u) = l(1) * sigmoid(alpha u - alpha) * (1 - exp(-alpha u)).
    """
    lost = -_EQUAL * torch.sigmoid(_ALPHA * unlike - _ALPHA) * torch.expm1(-_ALPHA * unlike)
    mean_lost = (lost * weight).flatten(1).sum(1) / (weight.flatten(1).sum(1) + _WEIGHT_OF_NOTHING)
    step = (torch.log1p(mean_lost / (1 - _EQUAL)) - torch.log1p(-mean_lost / _EQUAL)) / _ALPHA
    return step * (2 - step)  # 1 - (1 - step)^2
