"""How sharp reconstructions are: power spectra of originals, reconstructions and errors, summed over batches.

Each image loses its mean and is weighted with a Hann window, so that its borders do not pass for detail. A decoder
that answers with the mean of all images that fit a latent (the optimum of squared error) lacks exactly the power
that its errors have, by orthogonality: blur is missing power at high frequencies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

DETAIL = 0.125  # cycles per pixel: from here on, periods of up to 8 pixels, a picture's edges and textures
BINS = 16  # of the radius, from 0 to the 0.5 cycles per pixel that a grid of pixels can hold
SMALLEST_POWER = 1e-12


@dataclass(frozen=True)
class RadialSpectrum:
    """Mean power over all directions, by frequency; only bins that hold a frequency.

    Attributes:
        frequencies: [bins], cycles per pixel, ascending.
        originals, reconstructions, errors: [bins], squared pixel values per frequency (their sum over the plane of
            frequencies is a windowed image's variance).
    """

    frequencies: list[float]
    originals: list[float]
    reconstructions: list[float]
    errors: list[float]


@dataclass
class SpectrumSums:
    """Sums of squared Fourier magnitudes over images and channels.

    Attributes:
        images: number of images, scalar.
        originals, reconstructions, errors: [size, size // 2 + 1], the half plane of real images.
    """

    images: Tensor
    originals: Tensor
    reconstructions: Tensor
    errors: Tensor
    window: Tensor

    @classmethod
    def empty(cls, size: int, device: torch.device, dtype: torch.dtype) -> SpectrumSums:
        """Sums over no image of `size` pixels a side."""
        zeros = torch.zeros(size, size // 2 + 1, device=device, dtype=dtype)
        line = torch.hann_window(size, device=device)
        window = line[:, None] * line[None, :]
        window = window / window.square().mean().sqrt()  # keeps the variance of noise
        return cls(torch.zeros((), device=device, dtype=dtype), zeros, zeros.clone(), zeros.clone(), window)

    def add(self, reconstruction: Tensor, images: Tensor) -> None:
        """Count a batch: both [batch, channels, size, size]; the reconstruction is clipped to [0, 1]."""
        original, answer = self._transform(images), self._transform(reconstruction.clamp(0, 1))
        self.images += len(images)
        self.originals += _power(original).to(self.originals)
        self.reconstructions += _power(answer).to(self.originals)
        self.errors += _power(answer - original).to(self.originals)

    def _transform(self, images: Tensor) -> Tensor:
        centred = images.float() - images.float().mean((-2, -1), keepdim=True)
        return torch.fft.rfft2(centred * self.window, norm="forward")

    def tensors(self) -> list[Tensor]:
        """The sums, for adding them up over devices in place."""
        return [self.images, self.originals, self.reconstructions, self.errors]

    def sharpness(self) -> float:
        """Power of the reconstructions over that of the originals from DETAIL on; 1 is as sharp as the originals."""
        radius, copies = _plane(len(self.originals))
        detail = torch.from_numpy((radius >= DETAIL) * copies).to(self.originals)
        original, answer = (float((sums * detail).sum()) for sums in (self.originals, self.reconstructions))
        return answer / max(original, SMALLEST_POWER * float(self.images))

    def detail_powers(self, images: Tensor) -> Tensor:
        """What `sharpness` compares, image by image: the power from DETAIL on, float64 [n]; images in [0, 1]."""
        radius, copies = _plane(images.shape[-1])
        detail = torch.from_numpy((radius >= DETAIL) * copies).to(self.originals)
        power = torch.view_as_real(self._transform(images.clamp(0, 1))).square().sum(-1).mean(1)
        return (power.to(self.originals) * detail).sum((1, 2))

    def radial(self) -> RadialSpectrum:
        """The mean spectra of an image, by the length of the frequency."""
        radius, copies = _plane(len(self.originals))
        bins = np.minimum((radius * 2 * BINS).astype(int), BINS - 1).ravel()
        weights = np.where(radius > 0, copies, 0.0).ravel()  # the mean was taken out
        counts = np.bincount(bins, weights, BINS)
        held = counts > 0

        def mean(values: npt.NDArray[np.float64]) -> list[float]:
            found: list[float] = (np.bincount(bins, weights * values.ravel(), BINS)[held] / counts[held]).tolist()
            return found

        sums = (self.originals, self.reconstructions, self.errors)
        spectra = ((value / self.images).cpu().double().numpy() for value in sums)
        return RadialSpectrum(mean(radius), *(mean(spectrum) for spectrum in spectra))


def _power(transformed: Tensor) -> Tensor:
    """[batch, channels, height, half width], complex -> [height, half width], summed over the batch."""
    return torch.view_as_real(transformed).square().sum((0, -1)).mean(0)


def _plane(size: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Of each place in the half plane: the frequency in cycles per pixel, and how many places it stands for."""
    height, width = np.fft.fftfreq(size), np.fft.rfftfreq(size)
    copies = np.full(len(width), 2.0)
    copies[0] = 1.0
    if size % 2 == 0:
        copies[-1] = 1.0
    return np.hypot(height[:, None], width[None, :]), np.broadcast_to(copies, (size, len(width)))
