"""Likeness of a reconstruction and its original, one number an image: PSNR, SSIM, MS-SSIM.

SSIM: Wang et al., IEEE TIP 13 (2004); MS-SSIM: Wang, Simoncelli, Bovik, Asilomar 2003. Both are computed by
torchmetrics with the papers' constants (Gaussian window of 11 pixels, sigma 1.5, k1 0.01, k2 0.03), pixels in [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor

from unified_vae.metrics.reconstruction import SMALLEST_MSE

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, section 3.2, finest first
WINDOW = 11


def squared_errors(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Mean squared error of each image, float64 [n]; the reconstruction is clipped to [0, 1]."""
    return (reconstruction.clamp(0, 1) - images).square().flatten(1).double().mean(1)


def psnr_of_images(errors: Tensor) -> Tensor:
    """PSNR in dB of each mean squared error: [n]."""
    return -10 * errors.clamp_min(SMALLEST_MSE).log10()


def scales_of(size: int) -> int:
    """How many of the five scales torchmetrics has room for in an image of this side: 3 at 64 px, 5 from 176 on."""
    return sum(_has_room(size, level) for level in range(len(SCALE_WEIGHTS)))


def _has_room(size: int, level: int) -> bool:
    """For the window, by torchmetrics' own condition, and for its border of half a window at the smallest scale."""
    return size // max(1, level) ** 2 >= WINDOW and size // 2**level > WINDOW // 2


def ssim(reconstruction: Tensor, images: Tensor) -> Tensor:
    """SSIM of each pair [n, channels, size, size] in [0, 1]: [n]. From 6 pixels on."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    found: Tensor = structural_similarity_index_measure(
        reconstruction.clamp(0, 1), images, reduction="none", data_range=1.0
    )
    return found


def ms_ssim(reconstruction: Tensor, images: Tensor) -> Tensor:
    """MS-SSIM of each pair: [n]. Of `scales_of` scales, whose exponents are brought to a sum of 1."""
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    weights = torch.tensor(SCALE_WEIGHTS[: scales_of(images.shape[-1])])
    found: Tensor = multiscale_structural_similarity_index_measure(
        reconstruction.clamp(0, 1),
        images,
        reduction="none",
        data_range=1.0,
        betas=tuple((weights / weights.sum()).tolist()),
        normalize="relu",
    )
    return found
