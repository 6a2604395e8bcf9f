"""Metrics of reconstructions: PSNR, SSIM, MS-SSIM and sharpness, per image or as sums over batches and devices.

SSIM: Wang et al., IEEE TIP 13 (2004); MS-SSIM: Wang, Simoncelli, Bovik, Asilomar 2003. torchmetrics computes both with
the papers' constants (Gaussian window of 11 pixels, sigma 1.5, k1 0.01, k2 0.03). Pixels are in [0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

SMALLEST_MSE = 1e-12
SMALLEST_POWER = 1e-12

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, section 3.2, finest first
SSIM_WINDOW = 11

DETAIL = 0.125  # cycles per pixel: from here on, periods of up to 8 pixels, an image's edges and textures
RADIAL_BINS = 16  # of the radius, from 0 to the 0.5 cycles per pixel that a grid of pixels can hold


def psnr(mse: float) -> float:
    """Return the peak signal-to-noise ratio in dB of a mean squared error of pixels in [0, 1]: -10 log10(mse).

    At most 120 dB, so that identical images give a number that files and plots can hold.
    """
    return -10.0 * math.log10(max(mse, SMALLEST_MSE))


def squared_errors(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Return the mean squared error of each image, float64 [n]; the reconstruction is clipped to [0, 1]."""
    return (reconstruction.clamp(0, 1) - images).square().flatten(1).double().mean(1)


def psnr_per_image(errors: Tensor) -> Tensor:
    """Return the PSNR in dB of each mean squared error: [n]."""
    return -10 * errors.clamp_min(SMALLEST_MSE).log10()


def ssim(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Return the SSIM of each pair [n, channels, size, size] in [0, 1]: [n]. Needs 6 pixels a side."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    result: Tensor = structural_similarity_index_measure(
        reconstruction.clamp(0, 1), images, reduction="none", data_range=1.0
    )
    return result


def ms_ssim_scales(size: int) -> int:
    """Return how many of the five scales fit an image of this side: 3 at 64 px, 5 from 176 px on.

    The window has to fit, by torchmetrics' own condition, and so has its border of half a window at the smallest scale.
    """
    fits = (
        size // max(1, level) ** 2 >= SSIM_WINDOW and size // 2**level > SSIM_WINDOW // 2
        for level in range(len(SCALE_WEIGHTS))
    )
    return sum(fits)


def ms_ssim(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Return the MS-SSIM of each pair: [n]. Of `ms_ssim_scales` scales, with exponents normalized to a sum of 1."""
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    weights = torch.tensor(SCALE_WEIGHTS[: ms_ssim_scales(images.shape[-1])])
    result: Tensor = multiscale_structural_similarity_index_measure(
        reconstruction.clamp(0, 1),
        images,
        reduction="none",
        data_range=1.0,
        betas=tuple((weights / weights.sum()).tolist()),
        normalize="relu",
    )
    return result


@dataclass
class Sums:
    """Sums over the images of batches; those of several devices add up."""

    def tensors(self) -> list[Tensor]:
        """List the sums, to be added up over devices in place."""
        return [getattr(self, field.name) for field in fields(self)]


@dataclass
class ReconstructionSums(Sums):
    """Sums over images of the error of reconstructions, and of the pixels.

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
        """Create sums over no image."""
        zero = torch.zeros((), device=device, dtype=dtype)
        return cls(zero, zero.clone(), torch.zeros(channels, size, size, device=device, dtype=dtype), zero.clone())

    def add(self, reconstruction: Tensor, images: Tensor) -> None:
        """Add a batch: both [batch, channels, height, width]; the reconstruction is clipped to [0, 1]."""
        dtype = self.squared_error.dtype
        error = (reconstruction.clamp(0, 1) - images).square().flatten(1).mean(1)
        self.images += len(images)
        self.squared_error += error.to(dtype).sum()
        self.pixel_sum += images.sum(0).to(dtype)
        self.pixel_square_sum += images.square().flatten(1).mean(1).to(dtype).sum()

    def psnr(self) -> float:
        """Return the PSNR in dB of the mean squared error over all images (not the mean of each image's PSNR)."""
        return psnr(float(self.squared_error / self.images))

    def mean_image_psnr(self) -> float:
        """Return the PSNR in dB of answering every image with the mean image: what a collapsed model reaches."""
        mean = self.pixel_sum / self.images
        return psnr(float(self.pixel_square_sum / self.images - mean.square().mean()))


@dataclass
class SpectrumSums(Sums):
    """Sums of squared Fourier magnitudes over images and channels: how sharp reconstructions are.

    Each image loses its mean and is weighted with a Hann window, so that its borders do not pass for detail. A decoder
    that answers with the mean of all images that fit a latent (the optimum of squared error) lacks exactly the power
    that its errors have, by orthogonality: blur is missing power at high frequencies.

    Attributes:
        images: number of images, scalar.
        originals, reconstructions, errors: [size, size // 2 + 1], the half plane of real images.
    """

    images: Tensor
    originals: Tensor
    reconstructions: Tensor
    errors: Tensor

    @classmethod
    def empty(cls, size: int, device: torch.device, dtype: torch.dtype) -> SpectrumSums:
        """Create sums over no image of `size` pixels a side."""
        zeros = torch.zeros(size, size // 2 + 1, device=device, dtype=dtype)
        return cls(torch.zeros((), device=device, dtype=dtype), zeros, zeros.clone(), zeros.clone())

    def add(self, reconstruction: Tensor, images: Tensor) -> None:
        """Add a batch: both [batch, channels, size, size]; the reconstruction is clipped to [0, 1]."""
        original, reconstructed = windowed_spectrum(images), windowed_spectrum(reconstruction.clamp(0, 1))
        self.images += len(images)
        for sums, transform in (
            (self.originals, original),
            (self.reconstructions, reconstructed),
            (self.errors, reconstructed - original),
        ):
            sums += torch.view_as_real(transform).square().sum((0, -1)).mean(0).to(sums)

    def sharpness(self) -> float:
        """Return the power of the reconstructions over that of the originals from DETAIL on; 1 is equally sharp."""
        detail = self._detail_weights()
        original, reconstructed = (float((sums * detail).sum()) for sums in (self.originals, self.reconstructions))
        return reconstructed / max(original, SMALLEST_POWER * float(self.images))

    def detail_power(self, images: Tensor) -> Tensor:
        """Return what `sharpness` compares, per image: the power from DETAIL on, float64 [n]; images in [0, 1]."""
        power = torch.view_as_real(windowed_spectrum(images.clamp(0, 1))).square().sum(-1).mean(1)
        return (power.to(self.originals) * self._detail_weights()).sum((1, 2))

    def _detail_weights(self) -> Tensor:
        """How many frequencies from DETAIL on each entry of the half plane stands for."""
        radius, copies = _half_plane(len(self.originals))
        return torch.from_numpy((radius >= DETAIL) * copies).to(self.originals)

    def radial(self) -> dict[str, list[float]]:
        """Return the mean spectra of an image over all directions, only bins that hold a frequency.

        Returns:
            `frequencies` in cycles per pixel, ascending; `originals`, `reconstructions` and `errors` in squared pixel
            values per frequency (their sum over the plane of frequencies is a windowed image's variance).
        """
        radius, copies = _half_plane(len(self.originals))
        bins = np.minimum((radius * 2 * RADIAL_BINS).astype(int), RADIAL_BINS - 1).ravel()
        weights = np.where(radius > 0, copies, 0.0).ravel()  # the mean was taken out
        counts = np.bincount(bins, weights, RADIAL_BINS)
        filled = counts > 0
        planes = {"frequencies": radius} | {
            name: (getattr(self, name) / self.images).cpu().double().numpy()
            for name in ("originals", "reconstructions", "errors")
        }
        return {
            name: (np.bincount(bins, weights * plane.ravel(), RADIAL_BINS)[filled] / counts[filled]).tolist()
            for name, plane in planes.items()
        }


def hann_window(size: int, device: torch.device) -> Tensor:
    """Return a window over images, [size, size], that keeps the variance of noise."""
    line = torch.hann_window(size, device=device)
    window = line[:, None] * line[None, :]
    return window / window.square().mean().sqrt()


def windowed_spectrum(images: Tensor) -> Tensor:
    """Return the Fourier coefficients of images without their mean, half a plane: [..., size, size // 2 + 1]."""
    centered = images.float() - images.float().mean((-2, -1), keepdim=True)
    return torch.fft.rfft2(centered * hann_window(images.shape[-1], images.device), norm="forward")


def _half_plane(size: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the frequency in cycles per pixel of each entry of the half plane, and how many entries it stands for."""
    height, width = np.fft.fftfreq(size), np.fft.rfftfreq(size)
    copies = np.full(len(width), 2.0)
    copies[0] = 1.0
    if size % 2 == 0:
        copies[-1] = 1.0
    return np.hypot(height[:, None], width[None, :]), np.broadcast_to(copies, (size, len(width)))
