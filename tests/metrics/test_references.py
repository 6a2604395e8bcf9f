"""Metrics against reference implementations and closed forms."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from sklearn.metrics import mutual_info_score
from torch import nn

from unified_vae.core.posterior import DiagonalGaussian
from unified_vae.metrics import bootstrap, disentanglement, similarity
from unified_vae.metrics.frechet import frechet_distance
from unified_vae.metrics.kernel_distance import kernel_distance, resampled_distances
from unified_vae.metrics.likelihood import SMALLEST_VARIANCE, LatentDraws, log_ratio
from unified_vae.metrics.manifold import precision
from unified_vae.metrics.reconstruction import psnr


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def pair(size=64, count=3, channels=3):
    images = torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(1))
    images = nn.functional.avg_pool2d(images, 5, 1, 2)
    return (images + 0.03 * normal(*images.shape, dtype=torch.float32)).clamp(0, 1), images


# --- likeness of images -----------------------------------------------------------------------------------


def test_psnr_of_images_is_not_psnr_of_their_mean_error():
    reconstruction, images = pair()
    reconstruction[0] = images[0] + 0.1
    errors = similarity.squared_errors(reconstruction, images)
    expected = [
        psnr(float((a.clamp(0, 1) - b).double().square().mean())) for a, b in zip(reconstruction, images, strict=True)
    ]
    assert similarity.psnr_of_images(errors).tolist() == pytest.approx(expected, abs=1e-4)
    assert float(similarity.psnr_of_images(errors).mean()) > psnr(float(errors.mean()))


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
    assert similarity.ssim(reconstruction, images).tolist() == pytest.approx(expected, abs=1e-4)


def test_ms_ssim_of_five_scales_is_torchmetrics_own_and_fewer_scales_are_used_below():
    from torchmetrics.image import MultiScaleStructuralSimilarityIndexMeasure

    reconstruction, images = pair(180, 2)
    reference = MultiScaleStructuralSimilarityIndexMeasure(data_range=1.0)(reconstruction, images)
    assert similarity.scales_of(180) == 5
    assert float(similarity.ms_ssim(reconstruction, images).mean()) == pytest.approx(float(reference), abs=1e-4)
    assert [similarity.scales_of(size) for size in (16, 32, 64, 128, 256)] == [2, 2, 3, 4, 5]
    for size in (11, 16, 32, 64):
        values = similarity.ms_ssim(*pair(size, 2))
        assert values.shape == (2,) and (values < 1).all() and (values > 0.3).all()
        same = pair(size, 2)[1]
        assert similarity.ms_ssim(same, same).tolist() == pytest.approx([1, 1], abs=1e-5)


# --- distances of sets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [(200, 150), (20, 25)])
def test_the_frechet_distance_is_pytorch_fid_s_formula(counts):
    """Also with fewer images than features, where the square root of SciPy is of a singular matrix."""
    first, second = normal(counts[0], 32), 0.7 * normal(counts[1], 32, seed=1) + 0.2
    one, other = (np.cov(rows.numpy(), rowvar=False) for rows in (first, second))
    root = scipy.linalg.sqrtm(one @ other).real
    shift = (first.mean(0) - second.mean(0)).numpy()
    expected = shift @ shift + np.trace(one) + np.trace(other) - 2 * np.trace(root)
    assert frechet_distance(first.float(), second.float()) == pytest.approx(expected, rel=1e-4)


class Plain(nn.Module):
    """Features as they are, for torchmetrics."""

    num_features = 16

    def forward(self, images):
        return images.flatten(1)[:, :16].float()


def test_the_frechet_and_kernel_distances_are_those_of_torchmetrics():
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    first, second = normal(60, 16).float(), 0.8 * normal(60, 16, seed=1).float() + 0.3
    as_images = [rows.reshape(60, 1, 4, 4) for rows in (first, second)]
    metrics = [
        FrechetInceptionDistance(Plain(), normalize=True, input_img_size=(1, 4, 4)),
        KernelInceptionDistance(Plain(), subsets=1, subset_size=60, normalize=True),
    ]
    for metric in metrics:
        metric.used_custom_model = True  # the features are taken as they are
        metric.update(as_images[0], real=True)
        metric.update(as_images[1], real=False)
    assert frechet_distance(first, second) == pytest.approx(float(metrics[0].compute()), rel=1e-4)
    assert kernel_distance(first, second) == pytest.approx(float(metrics[1].compute()[0]), rel=1e-4)


def test_the_kernel_distance_is_unbiased_and_its_resamples_vary_around_it():
    values = [kernel_distance(normal(30, 8, seed=2 * n), normal(40, 8, seed=2 * n + 1)) for n in range(200)]
    assert abs(np.mean(values)) < 4 * np.std(values) / math.sqrt(200)
    first, second = normal(50, 8), normal(40, 8, seed=1) + 0.5
    draws = list(
        zip(bootstrap.resamples(50, 0, "a", 200), bootstrap.resamples(40, 0, "b", 200), strict=True)
    )  # fmt: skip
    found = resampled_distances(first, second, draws)
    assert np.mean(found) == pytest.approx(kernel_distance(first, second), rel=0.15)
    order = (np.arange(50), np.arange(40))
    assert resampled_distances(first, second, [order])[0] == pytest.approx(kernel_distance(first, second))


def test_precision_and_recall_are_prdc_s():
    """The definition of the package prdc: distances to the k-th nearest other one, by full matrices."""
    real, samples = normal(80, 5), 0.6 * normal(70, 5, seed=1) + 0.5
    radii = torch.cdist(real, real).sort(1).values[:, 3]
    expected = (torch.cdist(real, samples) <= radii[:, None]).any(0)
    assert torch.equal(precision(real, samples), expected)
    assert precision(real, real).all() and not precision(real, samples + 50).any()
    with pytest.raises(ValueError, match="neighbours"):
        precision(real[:3], samples)


# --- likelihood -------------------------------------------------------------------------------------------


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


def test_with_the_exact_posterior_the_importance_bound_is_the_likelihood():
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


def test_bits_per_dim_are_those_of_uniform_noise_for_pixels_of_no_structure():
    """Errors of deviation s code at log2(s sqrt(2 pi e)) + 8 bits; sigma is the likeliest, floored by rounding."""
    draws = LatentDraws(torch.full((4, 3), 48 * 0.01), torch.zeros(4, 3), torch.zeros(4), 48)
    assert draws.variance() == pytest.approx(0.01)
    expected = math.log2(0.1 * math.sqrt(2 * math.pi * math.e)) + 8
    assert draws.bits_per_dim(draws.elbo(0.01)).tolist() == pytest.approx([expected] * 4)
    assert LatentDraws(torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1), 48).variance() == SMALLEST_VARIANCE


# --- disentanglement --------------------------------------------------------------------------------------


def factors(images=600, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, 3, images), rng.integers(0, 2, images), rng.integers(0, 4, images)], 1)


def mixed(truth, seed=1):
    rng = np.random.default_rng(seed)
    mixing = np.array([[1, 0.2, 0, 0], [0, 1, 0.1, 0], [0, 0.3, 1, 0]])
    return truth @ mixing + 0.1 * rng.standard_normal((len(truth), 4))


def test_mutual_information_is_scikit_learn_s():
    truth = factors()
    units = disentanglement.binned(mixed(truth))
    for factor in truth.T:
        expected = [mutual_info_score(unit, factor) for unit in units.T]
        assert disentanglement.information(units, factor).tolist() == pytest.approx(expected, abs=1e-9)


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
    assert disentanglement.mig(disentanglement.binned(latents.T), truth) == pytest.approx(expected, abs=1e-6)


def test_dci_is_disentanglement_lib_s():
    """disentanglement and completeness: 1 - scipy's entropy of rows and columns, weighed by their sums."""
    matrix = np.abs(np.random.default_rng(0).standard_normal((5, 3)))
    matrix[2] = 0
    per_code = 1 - scipy.stats.entropy(matrix.T + 1e-11, base=3)
    per_factor = 1 - scipy.stats.entropy(matrix + 1e-11, base=5)
    expected = (per_code * matrix.sum(1)).sum() / matrix.sum(), (per_factor * matrix.sum(0)).sum() / matrix.sum()
    found = disentanglement.disentanglement(matrix), disentanglement.completeness(matrix)
    assert found == pytest.approx(expected, abs=1e-6)
    assert disentanglement.disentanglement(np.eye(4)) == pytest.approx(1.0, abs=1e-6)
    assert disentanglement.completeness(np.ones((4, 4))) == pytest.approx(0.0, abs=1e-6)


def test_sap_is_the_gap_of_the_two_best_linear_classifiers():
    from sklearn.svm import LinearSVC

    truth = factors(300)
    latents = mixed(truth)
    right = disentanglement.sap_answers(latents[:200], truth[:200], latents[200:], truth[200:])
    one = LinearSVC(C=0.01, class_weight="balanced", random_state=0).fit(latents[:200, 1:2], truth[:200, 1])
    assert right[:, 1, 1].mean() == pytest.approx(one.score(latents[200:, 1:2], truth[200:, 1]))
    accuracy = right.mean(0)
    expected = np.mean([sorted(column)[-1] - sorted(column)[-2] for column in accuracy.T])
    assert disentanglement.sap(accuracy) == pytest.approx(expected)


def test_latents_that_are_the_factors_are_disentangled_and_noise_is_not():
    truth = factors()
    rng = np.random.default_rng(2)
    clean, noise = truth + 0.01 * rng.standard_normal(truth.shape), rng.standard_normal(truth.shape)
    gaps = [disentanglement.mig(disentanglement.binned(latents), truth) for latents in (clean, noise)]
    assert gaps[0] > 0.9 > 0.1 > gaps[1]
    found = [disentanglement.importances(z[:150], truth[:150], z[150:300], truth[150:300]) for z in (clean, noise)]
    assert (
        disentanglement.disentanglement(found[0].matrix) > 0.9 > 0.5 > disentanglement.disentanglement(found[1].matrix)
    )
    assert found[0].right.mean() > 0.95 > 0.6 > found[1].right.mean()


# --- intervals --------------------------------------------------------------------------------------------


def test_intervals_are_a_pure_function_of_the_seed_and_cover_the_mean():
    values = normal(400).numpy()
    first = bootstrap.interval_of_means(values, 0, "x")
    assert first == bootstrap.interval_of_means(values, 0, "x")
    assert first != bootstrap.interval_of_means(values, 1, "x") != bootstrap.interval_of_means(values, 0, "y")
    half = 1.96 * values.std() / math.sqrt(400)
    assert (first.low, first.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)
    covered = [
        found.low < 0 < found.high
        for found in (bootstrap.interval_of_means(normal(60, seed=n).numpy(), 0, "c", count=200) for n in range(100))
    ]
    assert 0.85 < np.mean(covered) <= 1.0


def test_a_biased_spread_is_placed_around_the_value():
    found = bootstrap.around(5.0, np.linspace(10, 12, 101))
    assert (found.low, found.high) == pytest.approx((5 - 0.95, 5 + 0.95))
