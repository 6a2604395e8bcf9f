"""The Fréchet distance is the closed form where that is known."""

import pytest
import torch

from unified_vae.metrics.frechet import frechet_distance


def normal(count=4000, width=4, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_set_has_no_distance_to_itself():
    assert abs(frechet_distance(normal(), normal())) < 1e-9


def test_a_shift_counts_by_its_square():
    rows = normal()
    assert frechet_distance(rows, rows + 3.0) == pytest.approx(4 * 9.0)


def test_scaling_of_one_axis():
    """Along one axis with deviation d, scaled by k, the distance is (k - 1)^2 d^2."""
    rows = normal()
    rows = rows - rows.mean(0)
    scaled = rows.clone()
    scaled[:, 0] *= 3.0
    assert frechet_distance(rows, scaled) == pytest.approx(4 * float(rows[:, 0].var()), rel=0.01)


def test_two_draws_are_near():
    assert frechet_distance(normal(), normal(seed=1)) < 0.05
