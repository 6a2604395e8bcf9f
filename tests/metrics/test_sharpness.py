"""Spectra against plain formulas; sharpness falls with blur and not with anything else."""

import pytest
import torch
from torch.nn import functional as F

from unified_vae.metrics.sharpness import DETAIL, SpectrumSums

SIZE = 32


def sums_of(reconstruction, images):
    sums = SpectrumSums.empty(images.shape[-1], torch.device("cpu"), torch.float64)
    sums.add(reconstruction, images)
    return sums


def pictures(count=6, size=SIZE, seed=0):
    """Noise with the falling spectrum of photographs."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 3, size, size, generator=generator)
    frequencies = torch.hypot(torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None, :])
    falling = torch.fft.irfft2(torch.fft.rfft2(noise) / (frequencies + 1 / size), s=(size, size))
    return 0.5 + 0.1 * falling / falling.std()


def blurred(images, sigma):
    line = torch.exp(-0.5 * (torch.arange(-4, 5) / sigma) ** 2)
    kernel = torch.outer(line, line) / line.sum() ** 2
    padded = F.pad(images, (4, 4, 4, 4), mode="replicate")
    return F.conv2d(padded, kernel.expand(3, 1, 9, 9), groups=3)


def test_an_image_is_as_sharp_as_itself():
    images = pictures()
    sums = sums_of(images, images)
    assert sums.sharpness() == pytest.approx(1.0)
    assert max(sums.radial().errors) == 0.0


def test_sharpness_falls_with_blur_and_rises_with_noise():
    images = pictures()
    values = [sums_of(blurred(images, sigma), images).sharpness() for sigma in (0.3, 0.6, 1.0, 2.0)]
    assert values == sorted(values, reverse=True) and values[0] < 1 and values[-1] < 0.1
    assert sums_of(images + 0.1 * torch.randn(images.shape), images).sharpness() > 1.2


def test_sharpness_looks_at_detail_alone():
    """Another brightness and another wave of long period leave it as it is."""
    images = pictures()
    x = torch.arange(SIZE) * (2 * torch.pi * DETAIL / 4)
    assert sums_of(images + 0.05, images).sharpness() == pytest.approx(1.0, abs=1e-3)
    assert sums_of(images + 0.05 * torch.sin(x), images).sharpness() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("size", [8, 15, 16, 64])
def test_a_spectrum_of_noise_is_flat_and_adds_up_to_its_variance(size):
    generator = torch.Generator().manual_seed(size)
    noise = 0.5 + 0.1 * torch.randn(4000 // size, 3, size, size, generator=generator).clamp(-4, 4)
    spectrum = sums_of(noise, noise).radial()
    assert spectrum.frequencies == sorted(spectrum.frequencies)
    assert spectrum.originals[1:] == pytest.approx([0.01 / size**2] * (len(spectrum.originals) - 1), rel=0.25)


def test_what_a_projection_loses_is_what_its_errors_have():
    """The optimum of squared error: missing power and power of the errors are the same (the docstring's claim)."""
    images = pictures(200, 16)
    flat = images.flatten(1)
    mean = flat.mean(0)
    _, _, vectors = torch.linalg.svd(flat - mean, full_matrices=False)
    kept = vectors[:20]
    answer = (mean + (flat - mean) @ kept.T @ kept).unflatten(1, (3, 16, 16))
    window = SpectrumSums.empty(16, torch.device("cpu"), torch.float64)
    window.window = torch.ones_like(window.window)  # a window would mix directions
    window.add(answer.clamp(0, 1), images)
    spectrum = window.radial()
    for original, found, error in zip(spectrum.originals, spectrum.reconstructions, spectrum.errors, strict=True):
        assert found + error == pytest.approx(original, rel=0.05)


def test_batches_add_up():
    images = pictures()
    answer = blurred(images, 1.0)
    whole, parts = sums_of(answer, images), sums_of(answer[:2], images[:2])
    parts.add(answer[2:], images[2:])
    assert parts.sharpness() == pytest.approx(whole.sharpness(), rel=1e-6)
    assert parts.radial().errors == pytest.approx(whole.radial().errors, rel=1e-5)


def test_images_without_detail_give_a_number():
    flat = torch.full((2, 1, 16, 16), 0.5)
    assert sums_of(flat, flat).sharpness() == 0.0
