"""The aggregated posterior's gap against closed forms and a sampled reference."""

import pytest
import torch

from unified_vae.core.posterior import DiagonalGaussian
from unified_vae.metrics.aggregate import AggregateSums, shrunk


def sums_of(mean, variance):
    sums = AggregateSums.empty(mean.shape[1], torch.device("cpu"), torch.float64)
    sums.add(DiagonalGaussian(mean, torch.as_tensor(variance).expand_as(mean).log()))
    return sums


def draws(count, covariance, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, len(covariance), generator=generator) @ torch.linalg.cholesky(covariance).T


def reference(mean, covariance):
    """KL between the two distributions, by torch."""
    normal = torch.distributions.MultivariateNormal
    prior = normal(torch.zeros(len(mean)), torch.eye(len(mean)))
    return float(torch.distributions.kl_divergence(normal(mean, covariance), prior))


def test_a_posterior_that_is_the_prior_has_no_gap():
    assert sums_of(torch.zeros(50, 4), 1.0).gap() == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("latents", [1, 3])
def test_the_gap_is_that_of_the_fitted_gaussian(latents):
    """Means with covariance A and posterior variance v make q(z) with covariance A + v I."""
    factor = torch.randn(latents, latents, generator=torch.Generator().manual_seed(1))
    spread = factor @ factor.T + 0.5 * torch.eye(latents)
    shift = torch.arange(1.0, latents + 1)
    found = sums_of(draws(40_000, spread) + shift, 0.3).gap()
    assert found == pytest.approx(reference(shift, spread + 0.3 * torch.eye(latents)), rel=0.03)


@pytest.mark.parametrize("images", [100, 2000])
def test_chance_correlations_of_few_images_are_not_taken_for_a_gap(images):
    """64 independent units; the plain covariance would see 5 nats and more from 100 images."""
    sums = sums_of(draws(images, 0.8 * torch.eye(64)), 0.2)
    mean, covariance = sums.moments()
    assert sums.gap() < 1.5
    if images == 100:
        assert reference(mean.float(), covariance.float()) > 5


def test_real_correlations_are_kept():
    together = 0.1 * torch.eye(32) + 0.9 * torch.ones(32, 32)
    truth = reference(torch.zeros(32), together * 0.9 + 0.1 * torch.eye(32))
    assert sums_of(draws(300, 0.9 * together), 0.1).gap() == pytest.approx(truth, rel=0.2)


def test_a_correlation_of_one_unit_or_none_stays():
    assert torch.equal(shrunk(torch.eye(1), 10), torch.eye(1))
    assert torch.equal(shrunk(torch.eye(5), 10), torch.eye(5))


def test_batches_add_up():
    mean = draws(30, torch.eye(4))
    whole, parts = sums_of(mean, 0.5), sums_of(mean[:7], 0.5)
    parts.add(DiagonalGaussian(mean[7:], torch.full_like(mean[7:], 0.5).log()))
    assert parts.gap() == pytest.approx(whole.gap(), rel=1e-5)
