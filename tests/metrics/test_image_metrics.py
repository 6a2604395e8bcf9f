"""Image metrics against reference implementations and plain formulas, and their sums over batches."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unified_vae.metrics import images as metrics
from unified_vae.metrics.images import DETAIL, ReconstructionSums, SpectrumSums, psnr

SIZE = 32


def pair(size=64, count=3, channels=3):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, channels, size, size, generator=generator)
    images = nn.functional.avg_pool2d(images, 5, 1, 2)
    return (images + 0.03 * torch.randn(images.shape, generator=generator)).clamp(0, 1), images


def reconstruction_sums(batches):
    sums = ReconstructionSums.empty(3, 8, torch.device("cpu"), torch.float64)
    for reconstruction, images in batches:
        sums.add(reconstruction, images)
    return sums


def test_psnr_is_the_error_of_clipped_pixels_in_decibels():
    images, reconstruction = torch.rand(10, 3, 8, 8), torch.rand(10, 3, 8, 8) * 1.4 - 0.2
    expected = -10 * math.log10(float((reconstruction.clamp(0, 1) - images).square().mean()))
    assert reconstruction_sums([(reconstruction, images)]).psnr() == pytest.approx(expected, abs=1e-5)
    assert psnr(0.01) == pytest.approx(20.0) and psnr(0.0) == 120.0


def test_batches_add_up():
    images, reconstruction = torch.rand(10, 3, 8, 8), torch.rand(10, 3, 8, 8)
    whole = reconstruction_sums([(reconstruction, images)])
    parts = reconstruction_sums([(reconstruction[:3], images[:3]), (reconstruction[3:], images[3:])])
    assert parts.psnr() == pytest.approx(whole.psnr()) and parts.mean_image_psnr() == pytest.approx(
        whole.mean_image_psnr()
    )


def test_the_mean_image_line_is_what_the_mean_image_reaches():
    images = torch.rand(12, 3, 8, 8)
    answer = images.mean(0, keepdim=True).expand_as(images)
    sums = reconstruction_sums([(answer, images)])
    assert sums.mean_image_psnr() == pytest.approx(sums.psnr(), abs=1e-4)


def test_psnr_of_images_is_not_psnr_of_their_mean_error():
    reconstruction, images = pair()
    reconstruction[0] = images[0] + 0.1
    errors = metrics.squared_errors(reconstruction, images)
    expected = [
        psnr(float((a.clamp(0, 1) - b).double().square().mean())) for a, b in zip(reconstruction, images, strict=True)
    ]
    assert metrics.psnr_per_image(errors).tolist() == pytest.approx(expected, abs=1e-4)
    assert float(metrics.psnr_per_image(errors).mean()) > psnr(float(errors.mean()))


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_wang_s_formula_at_each_pixel(channels):
    """Computed anew with SciPy's Gaussian filter, whose window is cut where torchmetrics cuts it."""
    from scipy.ndimage import gaussian_filter

    reconstruction, images = pair(24, channels=channels)
    expected = []
    for x, y in zip(reconstruction.double().numpy(), images.double().numpy(), strict=True):
        maps = []
        for a, b in zip(x, y, strict=True):
            mean = [gaussian_filter(v, 1.5, mode="mirror", truncate=3.5) for v in (a, b, a * a, b * b, a * b)]
            mu, nu, aa, bb, ab = mean
            maps.append(
                (2 * mu * nu + 1e-4) * (2 * (ab - mu * nu) + 9e-4)
                / ((mu**2 + nu**2 + 1e-4) * (aa - mu**2 + bb - nu**2 + 9e-4))
            )  # fmt: skip
        expected.append(np.mean(maps))
    assert metrics.ssim(reconstruction, images).tolist() == pytest.approx(expected, abs=1e-4)


def test_ms_ssim_is_torchmetrics_own_and_small_images_work():
    from torchmetrics.image import MultiScaleStructuralSimilarityIndexMeasure

    reconstruction, images = pair(180, 2)
    reference = MultiScaleStructuralSimilarityIndexMeasure(data_range=1.0)(reconstruction, images)
    assert metrics.ms_ssim_scales(180) == 5
    assert float(metrics.ms_ssim(reconstruction, images).mean()) == pytest.approx(float(reference), abs=1e-4)
    assert [metrics.ms_ssim_scales(size) for size in (16, 32, 64, 128, 256)] == [2, 2, 3, 4, 5]
    for size in (11, 16, 32, 64):
        values = metrics.ms_ssim(*pair(size, 2))
        assert values.shape == (2,) and (values < 1).all() and (values > 0.3).all()
        same = pair(size, 2)[1]
        assert metrics.ms_ssim(same, same).tolist() == pytest.approx([1, 1], abs=1e-5)


def spectrum_sums(reconstruction, images):
    sums = SpectrumSums.empty(images.shape[-1], torch.device("cpu"), torch.float64)
    sums.add(reconstruction, images)
    return sums


def natural_images(count=6, size=SIZE, seed=0):
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
    images = natural_images()
    sums = spectrum_sums(images, images)
    assert sums.sharpness() == pytest.approx(1.0)
    assert max(sums.radial()["errors"]) == 0.0


def test_sharpness_falls_with_blur_and_rises_with_noise():
    images = natural_images()
    values = [spectrum_sums(blurred(images, sigma), images).sharpness() for sigma in (0.3, 0.6, 1.0, 2.0)]
    assert values == sorted(values, reverse=True) and values[0] < 1 and values[-1] < 0.1
    assert spectrum_sums(images + 0.1 * torch.randn(images.shape), images).sharpness() > 1.2


def test_sharpness_looks_at_detail_alone():
    """Another brightness and another wave of long period leave it as it is."""
    images = natural_images()
    x = torch.arange(SIZE) * (2 * torch.pi * DETAIL / 4)
    assert spectrum_sums(images + 0.05, images).sharpness() == pytest.approx(1.0, abs=1e-3)
    assert spectrum_sums(images + 0.05 * torch.sin(x), images).sharpness() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("size", [8, 15, 16, 64])
def test_the_spectrum_of_noise_is_flat_and_sums_to_its_variance(size):
    generator = torch.Generator().manual_seed(size)
    noise = 0.5 + 0.1 * torch.randn(4000 // size, 3, size, size, generator=generator).clamp(-4, 4)
    spectrum = spectrum_sums(noise, noise).radial()
    assert spectrum["frequencies"] == sorted(spectrum["frequencies"])
    assert spectrum["originals"][1:] == pytest.approx([0.01 / size**2] * (len(spectrum["originals"]) - 1), rel=0.25)


def test_what_a_projection_loses_is_what_its_errors_have(monkeypatch):
    """The optimum of squared error: missing power and power of the errors are the same (the docstring's claim)."""
    images = natural_images(200, 16)
    flat = images.flatten(1)
    mean = flat.mean(0)
    _, _, vectors = torch.linalg.svd(flat - mean, full_matrices=False)
    kept = vectors[:20]
    answer = (mean + (flat - mean) @ kept.T @ kept).unflatten(1, (3, 16, 16))
    monkeypatch.setattr(metrics, "hann_window", lambda *_: 1.0)  # a window would mix directions
    spectrum = spectrum_sums(answer.clamp(0, 1), images).radial()
    for original, reconstruction, error in zip(
        spectrum["originals"], spectrum["reconstructions"], spectrum["errors"], strict=True
    ):
        assert reconstruction + error == pytest.approx(original, rel=0.05)


def test_batches_of_spectra_add_up():
    images = natural_images()
    answer = blurred(images, 1.0)
    whole, parts = spectrum_sums(answer, images), spectrum_sums(answer[:2], images[:2])
    parts.add(answer[2:], images[2:])
    assert parts.sharpness() == pytest.approx(whole.sharpness(), rel=1e-6)
    assert parts.radial()["errors"] == pytest.approx(whole.radial()["errors"], rel=1e-5)


def test_images_without_detail_give_a_number():
    flat = torch.full((2, 1, 16, 16), 0.5)
    assert spectrum_sums(flat, flat).sharpness() == 0.0
