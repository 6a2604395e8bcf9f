"""Latent metrics against reference implementations, closed forms and samples, and their sums over batches."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score

from unified_vae.core.distributions import DiagonalGaussian
from unified_vae.metrics import latents as metrics
from unified_vae.metrics.latents import SMALLEST_PIXEL_VARIANCE, LatentDraws, LatentSums, log_ratio, shrink_correlation


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sums_of(mean, variance):
    sums = LatentSums.empty(mean.shape[1], torch.device("cpu"), torch.float64)
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
    gap = sums_of(draws(40_000, spread) + shift, 0.3).gap()
    assert gap == pytest.approx(reference(shift, spread + 0.3 * torch.eye(latents)), rel=0.03)


@pytest.mark.parametrize("images", [100, 2000])
def test_chance_correlations_of_few_images_are_no_gap(images):
    """64 independent units; the plain covariance would see 5 nats and more from 100 images."""
    sums = sums_of(draws(images, 0.8 * torch.eye(64)), 0.2)
    mean, covariance = sums.aggregate_moments()
    assert sums.gap() < 1.5
    if images == 100:
        assert reference(mean.float(), covariance.float()) > 5


def test_real_correlations_are_kept():
    together = 0.1 * torch.eye(32) + 0.9 * torch.ones(32, 32)
    truth = reference(torch.zeros(32), together * 0.9 + 0.1 * torch.eye(32))
    assert sums_of(draws(300, 0.9 * together), 0.1).gap() == pytest.approx(truth, rel=0.2)


def test_a_correlation_of_one_unit_or_none_stays():
    assert torch.equal(shrink_correlation(torch.eye(1), 10), torch.eye(1))
    assert torch.equal(shrink_correlation(torch.eye(5), 10), torch.eye(5))


def test_batches_of_posteriors_add_up():
    mean = draws(30, torch.eye(4))
    whole, parts = sums_of(mean, 0.5), sums_of(mean[:7], 0.5)
    parts.add(DiagonalGaussian(mean[7:], torch.full_like(mean[7:], 0.5).log()))
    assert parts.gap() == pytest.approx(whole.gap(), rel=1e-5)


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


# --- likelihood ---


class LinearGaussian:
    """x = W z + m + sigma e: its likelihood and its posterior are known."""

    def __init__(self, sigma=0.3):
        self.weight, self.sigma = 0.5 * normal(6, 2), sigma
        self.images = normal(200, 2, seed=3) @ self.weight.T + sigma * normal(200, 6, seed=4)
        precision_of = torch.eye(2) + self.weight.T @ self.weight / sigma**2
        # made diagonal by turning the latents, so that a diagonal posterior is exact
        values, vectors = torch.linalg.eigh(precision_of.double())
        self.weight = self.weight @ vectors
        self.variance = 1 / values
        self.mean = self.images @ self.weight / sigma**2 * self.variance

    def log_likelihood(self):
        covariance = self.weight @ self.weight.T + self.sigma**2 * torch.eye(6)
        return torch.distributions.MultivariateNormal(torch.zeros(6).double(), covariance).log_prob(self.images)

    def draws(self, count, widening=1.0, seed=5):
        posterior = DiagonalGaussian(self.mean, (widening * self.variance).log().expand_as(self.mean))
        errors, ratios = [], []
        for number in range(count):
            noise = normal(200, 2, seed=seed * 1000 + number)
            errors.append((posterior.sample(noise) @ self.weight.T - self.images).square().sum(1))
            ratios.append(log_ratio(posterior, noise))
        rate = posterior.kl_per_unit().sum(1)
        return LatentDraws(torch.stack(errors, 1), torch.stack(ratios, 1), rate, 6)


def test_the_importance_bound_is_tight_for_the_exact_posterior():
    model = LinearGaussian()
    for count in (1, 7):
        bound = model.draws(count).importance_bound(model.sigma**2)
        torch.testing.assert_close(bound, model.log_likelihood(), atol=1e-6, rtol=1e-6)
    elbo = model.draws(2000).elbo(model.sigma**2).mean()
    assert float(elbo) == pytest.approx(float(model.log_likelihood().mean()), abs=0.01)


def test_the_bounds_are_ordered_and_tighten_with_more_draws():
    model = LinearGaussian()
    few, many = model.draws(5, 2.0), model.draws(400, 2.0)
    variance, truth = model.sigma**2, model.log_likelihood().mean()
    elbo, loose, tight = (
        many.elbo(variance).mean(),
        few.importance_bound(variance).mean(),
        many.importance_bound(variance).mean(),
    )
    assert elbo < loose < tight < truth + 1e-3
    assert float(truth - elbo) == pytest.approx(0.5 * 2 * (2 - 1 - math.log(2)), abs=0.05)  # KL(q || posterior)
    assert float(tight) == pytest.approx(float(truth), abs=0.01)


def test_bits_per_dim_of_unstructured_pixels_is_eight():
    """Errors of deviation s code at log2(s sqrt(2 pi e)) + 8 bits; sigma is the likeliest, floored by rounding."""
    draws = LatentDraws(torch.full((4, 3), 48 * 0.01), torch.zeros(4, 3), torch.zeros(4), 48)
    assert draws.variance() == pytest.approx(0.01)
    expected = math.log2(0.1 * math.sqrt(2 * math.pi * math.e)) + 8
    assert draws.bits_per_dim(draws.elbo(0.01)).tolist() == pytest.approx([expected] * 4)
    assert LatentDraws(torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1), 48).variance() == SMALLEST_PIXEL_VARIANCE


def factors(images=600, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, 3, images), rng.integers(0, 2, images), rng.integers(0, 4, images)], 1)


def mixed(truth, seed=1):
    rng = np.random.default_rng(seed)
    mixing = np.array([[1, 0.2, 0, 0], [0, 1, 0.1, 0], [0, 0.3, 1, 0]])
    return truth @ mixing + 0.1 * rng.standard_normal((len(truth), 4))


def test_mutual_information_is_scikit_learn_s():
    truth = factors()
    units = metrics.bin_latents(mixed(truth))
    for factor in truth.T:
        expected = [mutual_info_score(unit, factor) for unit in units.T]
        assert metrics.mutual_information(units, factor).tolist() == pytest.approx(expected, abs=1e-9)


def test_mig_is_disentanglement_lib_s():
    """Its three functions, written as there: histogram_discretizer, discrete_mutual_info, the sorted gap."""
    truth = factors()
    latents = mixed(truth).T
    binned = np.zeros_like(latents)
    for i in range(latents.shape[0]):
        binned[i] = np.digitize(latents[i], np.histogram(latents[i], 20)[1][:-1])
    table = np.array([[mutual_info_score(factor, unit) for factor in truth.T] for unit in binned])
    entropy = np.array([mutual_info_score(factor, factor) for factor in truth.T])
    ordered = np.sort(table, axis=0)[::-1]
    expected = np.mean((ordered[0] - ordered[1]) / entropy)
    assert metrics.mig(metrics.bin_latents(latents.T), truth) == pytest.approx(expected, abs=1e-6)


def test_factors_are_disentangled_and_noise_is_not():
    truth = factors()
    rng = np.random.default_rng(2)
    clean, noise = truth + 0.01 * rng.standard_normal(truth.shape), rng.standard_normal(truth.shape)
    gaps = [metrics.mig(metrics.bin_latents(latents), truth) for latents in (clean, noise)]
    assert gaps[0] > 0.9 > 0.1 > gaps[1]
