"""How near reconstructions are to their originals, summed so that batches and devices add up."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST_MSE = 1e-12


def psnr(mse: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error of pixels in [0, 1]: -10 log10(mse).

    At most 120 dB, so that identical images give a number that files and plots can hold.
    """
    return -10.0 * math.log10(max(mse, SMALLEST_MSE))


@dataclass
class ReconstructionSums:
    """Sums over images; `+` of two is the sum over both sets.

    Attributes:
        images: number of images so far, scalar.
        squared_error: sum over images of the mean squared error of clipped reconstructions, scalar.
        pixel_sum: [channels, height, width], sum of the originals.
        pixel_square_sum: scalar, sum over images of the mean squared pixel.
    """

    images: Tensor
    squared_error: Tensor
    pixel_sum: Tensor
    pixel_square_sum: Tensor

    @classmethod
    def empty(cls, channels: int, size: int, device: torch.device, dtype: torch.dtype) -> ReconstructionSums:
        """Sums over no image."""
        zero = torch.zeros((), device=device, dtype=dtype)
        return cls(zero, zero.clone(), torch.zeros(channels, size, size, device=device, dtype=dtype), zero.clone())

    def add(self, reconstruction: Tensor, images: Tensor) -> None:
        """Count a batch: both [batch, channels, height, width]; the reconstruction is clipped to [0, 1]."""
        dtype = self.squared_error.dtype
        error = (reconstruction.clamp(0, 1) - images).square().flatten(1).mean(1)
        self.images += len(images)
        self.squared_error += error.to(dtype).sum()
        self.pixel_sum += images.sum(0).to(dtype)
        self.pixel_square_sum += images.square().flatten(1).mean(1).to(dtype).sum()

    def tensors(self) -> list[Tensor]:
        """The sums, for adding them up over devices in place."""
        return [self.images, self.squared_error, self.pixel_sum, self.pixel_square_sum]

    def psnr(self) -> float:
        """dB of the mean squared error over all images (not the mean of each image's dB)."""
        return psnr(float(self.squared_error / self.images))

    def mean_image_psnr(self) -> float:
        """dB of answering every image with the mean image: what a collapsed model reaches."""
        mean = self.pixel_sum / self.images
        return psnr(float(self.pixel_square_sum / self.images - mean.square().mean()))
