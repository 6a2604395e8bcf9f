"""Metrics against plain formulas, and their sums over batches."""

import math

import pytest
import torch

from unified_vae.core.posterior import DiagonalGaussian
from unified_vae.metrics.latent import LatentSums
from unified_vae.metrics.reconstruction import ReconstructionSums, psnr


def reconstruction_sums(batches):
    sums = ReconstructionSums.empty(3, 8, torch.device("cpu"), torch.float64)
    for reconstruction, images in batches:
        sums.add(reconstruction, images)
    return sums


def test_psnr_is_the_mean_squared_error_of_clipped_pixels_in_decibel():
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


def test_active_units_are_those_whose_mean_follows_the_image():
    """Burda et al. 2016: Var_x[mu_j] > 0.01."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(500, 4, generator=generator) * torch.tensor([1.0, 0.2, 0.05, 0.0]) + torch.tensor(
        [0, 5.0, 5.0, 5.0]
    )
    posterior = DiagonalGaussian(mean, torch.full_like(mean, -1.0))
    sums = LatentSums.empty(4, torch.device("cpu"), torch.float64)
    sums.add(DiagonalGaussian(mean[:200], posterior.logvar[:200]))
    sums.add(DiagonalGaussian(mean[200:], posterior.logvar[200:]))
    assert sums.active().tolist() == [True, True, False, False]
    torch.testing.assert_close(sums.variance_of_means(), mean.double().var(0, correction=0))
    assert sums.rate() == pytest.approx(float(posterior.kl_per_unit().double().sum(1).mean()), rel=1e-5)
