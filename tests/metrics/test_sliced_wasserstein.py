"""The sliced Wasserstein distance: 0 to itself, small between halves of one set, large to what looks different."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from unified_vae.metrics.sliced_wasserstein import descriptors, distances, means_of_resamples, pyramid


def pictures(count, size=32, seed=0):
    """Soft and fine noise together: every image shows the whole distribution, at every scale."""
    generator = torch.Generator().manual_seed(seed)
    coarse, fine = (torch.randn(count, 3, n, n, generator=generator) for n in (size // 2, size))
    return (0.5 + 0.1 * F.interpolate(coarse, size, mode="bilinear") + 0.05 * fine).clamp(0, 1)


def blurred(images):
    return F.avg_pool2d(images, 5, stride=1, padding=2, count_include_pad=False)


def test_a_set_has_no_distance_to_itself():
    images = pictures(8)
    assert set(distances(images, images).values()) == {0.0}


def test_halves_of_one_set_are_near_and_nearer_the_larger_they_are():
    few, more = (distances(pictures(n), pictures(n, seed=1)) for n in (6, 36))
    assert list(more) == ["32", "16", "mean"]
    assert all(0 < more[level] < 0.7 * few[level] for level in more)


def test_blur_is_far_from_what_it_blurs():
    """At the finest level, which it empties; also where the other set shows the very same pictures."""
    images = pictures(36)
    blur, halves = distances(images, blurred(images)), distances(images, pictures(36, seed=1))
    assert blur["32"] > 2 * halves["32"]


def test_it_is_symmetric_and_repeats():
    first, second = pictures(8), pictures(8, seed=1)
    there, back = distances(first, second), distances(second, first)
    assert there == pytest.approx(back)
    assert there == distances(first, second)


def test_the_seed_decides_where_it_looks():
    images = pictures(4)
    assert not torch.equal(descriptors(images, 1), descriptors(images, 2))


def test_the_descriptors_are_normalised():
    patches = descriptors(pictures(10), 0).unflatten(1, (3, 49))
    assert patches.mean(dim=(0, 2)).abs().max() < 1e-4
    assert (patches.std(dim=(0, 2)) - 1).abs().max() < 1e-4


def test_the_pyramid_keeps_the_image():
    """A constant has nothing in the fine levels; the number of levels follows from the size."""
    levels = pyramid(torch.full((2, 3, 64, 64), 0.7))
    assert [level.shape[-1] for level in levels] == [64, 32, 16]
    assert levels[0].abs().max() < 1e-5 and levels[1].abs().max() < 1e-5
    assert torch.allclose(levels[2], torch.tensor(0.7), atol=1e-5)


@pytest.mark.parametrize("shapes", [((2, 3, 32, 32), (3, 3, 32, 32)), ((2, 3, 28, 28),) * 2])
def test_what_cannot_be_compared_is_refused(shapes):
    with pytest.raises(ValueError):
        distances(*(torch.rand(shape) for shape in shapes))


def test_resamples_spread_around_the_distance():
    """The resample that is the set itself gives the distance, but for the number of directions."""
    first, second = pictures(24), blurred(pictures(24, seed=1))
    itself = np.arange(24)
    (found,) = means_of_resamples(first, second, [(itself, itself)])
    assert found == pytest.approx(distances(first, second)["mean"], rel=0.1)
    draws = np.random.default_rng(0).integers(0, 24, (2, 24))
    assert means_of_resamples(first, second, [tuple(draws)]) != [found]
