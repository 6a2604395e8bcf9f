"""Bootstrap intervals: reproducible, and of the right width."""

import math

import numpy as np
import pytest

from unified_vae.metrics import bootstrap


def normal(count, seed=0):
    return np.random.default_rng(seed).standard_normal(count)


def test_intervals_are_a_pure_function_of_the_seed_and_cover_the_mean():
    values = normal(400)
    first = bootstrap.interval_of_means(values, 0, "x")
    assert first == bootstrap.interval_of_means(values, 0, "x")
    assert first != bootstrap.interval_of_means(values, 1, "x") != bootstrap.interval_of_means(values, 0, "y")
    half = 1.96 * values.std() / math.sqrt(400)
    assert (first.low, first.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)
    covered = [
        found.low < 0 < found.high
        for found in (bootstrap.interval_of_means(normal(60, seed=n), 0, "c", count=200) for n in range(100))
    ]
    assert 0.85 < np.mean(covered) <= 1.0


def test_a_biased_spread_is_placed_around_the_value():
    found = bootstrap.around(5.0, np.linspace(10, 12, 101))
    assert (found.low, found.high) == pytest.approx((5 - 0.95, 5 + 0.95))
