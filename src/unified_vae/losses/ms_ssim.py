"""1 - MS-SSIM: structure at several scales, no pretrained weights.

Wang, Simoncelli, Bovik, "Multi-scale structural similarity for image quality assessment", Asilomar 2003.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from unified_vae.losses.term import DistortionTerm

_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # section 3.2, finest first
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2
_SMALL = 0.01  # below this a similarity is bent, so that its power keeps a finite gradient


def scales_that_fit(size: int) -> int:
    """How many of the five scales an image of this side has room for: 1 at 11 px, 3 at 64, 5 at 161."""
    return sum((_WINDOW - 1) * 2**level < size for level in range(len(_SCALE_WEIGHTS)))


def _bent_positive(value: Tensor) -> Tensor:
    """`value` where it is above _SMALL; below, a smooth positive continuation of the same slope.

    Opposite structure gives negative similarities, whose fractional powers do not exist. Clipping them
    would leave the worst images without a gradient.
    """
    return torch.where(value > _SMALL, value, _SMALL**2 / (2 * _SMALL - value.clamp(max=_SMALL)))


class MSSSIM(DistortionTerm):
    """1 - MS-SSIM over as many scales as the image has room for, their exponents renormalised to sum to 1."""

    degree = 1.9
    floor = 3e-5
    minimum_size = _WINDOW

    def __init__(self, image_size: int) -> None:
        super().__init__()
        weights = _SCALE_WEIGHTS[: scales_that_fit(image_size)]
        self.exponents = [weight / sum(weights) for weight in weights]
        offsets = torch.arange(_WINDOW) - (_WINDOW - 1) / 2
        window = torch.exp(-offsets.square() / (2 * _SIGMA**2))
        self.register_buffer("window", (window / window.sum())[None, None], persistent=False)

    def _blur(self, images: Tensor) -> Tensor:
        """Gaussian mean around each pixel, without a border: [N, H, W] to [N, H - 10, W - 10]."""
        planes = len(images)
        window = self.get_buffer("window").expand(planes, 1, _WINDOW)
        # One group a plane: on a CPU ten times as fast as one plane a batch entry.
        rows = F.conv2d(images[None], window[..., None], groups=planes)
        return F.conv2d(rows, window[:, :, None], groups=planes)[0]

    def _similarities(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Contrast-and-structure, and the whole SSIM, of [N, H, W] planes: two [N]."""
        mean_x, mean_y, mean_xx, mean_yy, mean_xy = self._blur(torch.cat([x, y, x * x, y * y, x * y])).chunk(5)
        spread = mean_xx - mean_x.square() + mean_yy - mean_y.square()
        contrast = (2 * (mean_xy - mean_x * mean_y) + _C2) / (spread + _C2)
        luminance = (2 * mean_x * mean_y + _C1) / (mean_x.square() + mean_y.square() + _C1)
        return contrast.mean((1, 2)), (luminance * contrast).mean((1, 2))

    def forward(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """See `DistortionTerm.forward`. Channels are compared apart and averaged."""
        batch = len(target)
        x, y = reconstruction.flatten(0, 1), target.flatten(0, 1)  # [batch * channels, H, W]
        index = torch.ones(len(x), device=x.device)
        for level, exponent in enumerate(self.exponents):
            contrast, whole = self._similarities(x, y)
            last = level == len(self.exponents) - 1
            index = index * _bent_positive(whole if last else contrast) ** exponent
            if not last:
                x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        return 1 - index.view(batch, -1).mean(1)
