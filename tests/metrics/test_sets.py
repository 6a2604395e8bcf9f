"""Distances of sets against reference implementations and closed forms."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn
from torch.nn import functional as F

from unified_vae.metrics.sets import (
    frechet_distance,
    kernel_distance,
    laplacian_pyramid,
    patch_descriptors,
    patch_distances,
    precision,
    resampled_kernel_distances,
    resampled_patch_distances,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_set_has_no_frechet_distance_to_itself():
    assert abs(frechet_distance(normal(4000, 4), normal(4000, 4))) < 1e-9


def test_a_shift_counts_by_its_square():
    rows = normal(4000, 4)
    assert frechet_distance(rows, rows + 3.0) == pytest.approx(4 * 9.0)


def test_scaling_of_one_axis():
    """Along one axis with deviation d, scaled by k, the distance is (k - 1)^2 d^2."""
    rows = normal(4000, 4)
    rows = rows - rows.mean(0)
    scaled = rows.clone()
    scaled[:, 0] *= 3.0
    assert frechet_distance(rows, scaled) == pytest.approx(4 * float(rows[:, 0].var()), rel=0.01)


def test_two_draws_have_a_small_frechet_distance():
    assert frechet_distance(normal(4000, 4), normal(4000, 4, seed=1)) < 0.05


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


def test_fid_and_kid_are_those_of_torchmetrics():
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


def test_kid_is_unbiased_and_its_resamples_vary_around_it():
    values = [kernel_distance(normal(30, 8, seed=2 * n), normal(40, 8, seed=2 * n + 1)) for n in range(200)]
    assert abs(np.mean(values)) < 4 * np.std(values) / math.sqrt(200)
    first, second = normal(50, 8), normal(40, 8, seed=1) + 0.5
    random = np.random.default_rng(0)
    draws = [(random.integers(0, 50, 50), random.integers(0, 40, 40)) for _ in range(200)]
    distances = resampled_kernel_distances(first, second, draws)
    assert np.mean(distances) == pytest.approx(kernel_distance(first, second), rel=0.15)
    order = (np.arange(50), np.arange(40))
    assert resampled_kernel_distances(first, second, [order])[0] == pytest.approx(kernel_distance(first, second))


def test_precision_and_recall_are_prdc_s():
    """The definition of the package prdc: distances to the k-th nearest other one, by full matrices."""
    real, samples = normal(80, 5), 0.6 * normal(70, 5, seed=1) + 0.5
    radii = torch.cdist(real, real).sort(1).values[:, 3]
    expected = (torch.cdist(real, samples) <= radii[:, None]).any(0)
    assert torch.equal(precision(real, samples), expected)
    assert precision(real, real).all() and not precision(real, samples + 50).any()
    with pytest.raises(ValueError, match="neighbors"):
        precision(real[:3], samples)


def images_of(count, size=32, seed=0):
    """Soft and fine noise together: every image shows the whole distribution, at every scale."""
    generator = torch.Generator().manual_seed(seed)
    coarse, fine = (torch.randn(count, 3, n, n, generator=generator) for n in (size // 2, size))
    return (0.5 + 0.1 * F.interpolate(coarse, size, mode="bilinear") + 0.05 * fine).clamp(0, 1)


def blurred(images):
    return F.avg_pool2d(images, 5, stride=1, padding=2, count_include_pad=False)


def test_a_set_has_no_patch_distance_to_itself():
    images = images_of(8)
    assert set(patch_distances(images, images).values()) == {0.0}


def test_halves_of_a_set_are_nearer_the_larger_they_are():
    few, more = (patch_distances(images_of(n), images_of(n, seed=1)) for n in (6, 36))
    assert list(more) == ["32", "16", "mean"]
    assert all(0 < more[level] < 0.7 * few[level] for level in more)


def test_blur_is_far_from_what_it_blurs():
    """At the finest level, which it empties; also where the other set shows the very same pictures."""
    images = images_of(36)
    blur, halves = patch_distances(images, blurred(images)), patch_distances(images, images_of(36, seed=1))
    assert blur["32"] > 2 * halves["32"]


def test_patch_distances_are_symmetric_and_repeat():
    first, second = images_of(8), images_of(8, seed=1)
    there, back = patch_distances(first, second), patch_distances(second, first)
    assert there == pytest.approx(back)
    assert there == patch_distances(first, second)


def test_the_seed_decides_where_it_looks():
    images = images_of(4)
    assert not torch.equal(patch_descriptors(images, 1), patch_descriptors(images, 2))


def test_the_descriptors_are_normalized():
    patches = patch_descriptors(images_of(10), 0).unflatten(1, (3, 49))
    assert patches.mean(dim=(0, 2)).abs().max() < 1e-4
    assert (patches.std(dim=(0, 2)) - 1).abs().max() < 1e-4


def test_the_pyramid_keeps_the_image():
    """A constant has nothing in the fine levels; the number of levels follows from the size."""
    levels = laplacian_pyramid(torch.full((2, 3, 64, 64), 0.7))
    assert [level.shape[-1] for level in levels] == [64, 32, 16]
    assert levels[0].abs().max() < 1e-5 and levels[1].abs().max() < 1e-5
    assert torch.allclose(levels[2], torch.tensor(0.7), atol=1e-5)


@pytest.mark.parametrize("shapes", [((2, 3, 32, 32), (3, 3, 32, 32)), ((2, 3, 28, 28),) * 2])
def test_what_cannot_be_compared_is_refused(shapes):
    with pytest.raises(ValueError):
        patch_distances(*(torch.rand(shape) for shape in shapes))


def test_resamples_spread_around_the_distance():
    """The resample that is the set itself gives the distance, but for the number of directions."""
    first, second = images_of(24), blurred(images_of(24, seed=1))
    itself = np.arange(24)
    (distance,) = resampled_patch_distances(first, second, [(itself, itself)])
    assert distance == pytest.approx(patch_distances(first, second)["mean"], rel=0.1)
    draws = np.random.default_rng(0).integers(0, 24, (2, 24))
    assert resampled_patch_distances(first, second, [tuple(draws)]) != [distance]
