"""Bootstrap intervals and paired differences: reproducible, of the right width, and sharper than two intervals."""

import math

import numpy as np
import pytest

from unified_vae.evaluation import Group
from unified_vae.evaluation.bootstrap import MetricResult, bootstrap_interval, paired_difference


def normal(count, seed=0):
    return np.random.default_rng(seed).standard_normal(count)


def metric(values, better="higher", seed=0, name="x"):
    return MetricResult(name, "x", Group.RECONSTRUCTION, better=better).with_mean(values, seed)


def distance(value, resampled, better="lower"):
    empty = MetricResult("fid", "FID", Group.SAMPLES, better=better)
    return empty.with_value(value, 10, resampled, biased=True)


def test_intervals_repeat_and_cover_the_mean():
    values = normal(400)
    low, high = metric(values).interval
    assert (low, high) == metric(values).interval
    assert metric(values, seed=1).interval != (low, high) != metric(values, name="y").interval
    half = 1.96 * values.std() / math.sqrt(400)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)
    intervals = [metric(normal(60, seed)).interval for seed in range(40)]
    assert 0.8 < np.mean([low < 0 < high for low, high in intervals]) <= 1.0


def test_a_biased_spread_is_placed_around_the_value():
    resampled = np.linspace(10, 12, 101)
    assert bootstrap_interval(5.0, resampled, biased=True) == pytest.approx((5 - 0.95, 5 + 0.95))
    assert bootstrap_interval(0.5, resampled, biased=True, minimum=0.0)[0] == 0
    assert bootstrap_interval(5.0, np.array([1.0, np.nan])) is None


def test_a_value_that_is_nan_is_missing():
    result = MetricResult("x", "x", Group.LATENTS).with_value(math.nan, 3)
    assert result.value is None and "NaN" in result.missing


def test_differences_are_paired_image_by_image():
    """Two models whose intervals overlap widely are told apart where one is better on every image."""
    rng = np.random.default_rng(0)
    base = rng.normal(0, 1, 200)
    shifted, noisy = base + 0.1 + 0.01 * rng.normal(size=200), base + 0.1 + rng.normal(size=200)
    difference = paired_difference(metric(base), metric(shifted))
    assert difference.verdict == "better" and difference.interval == pytest.approx((0.1, 0.1), abs=0.01)
    assert metric(base).interval[1] > metric(shifted).interval[0]
    assert paired_difference(metric(base), metric(noisy)).verdict == ""
    assert paired_difference(metric(base, "lower"), metric(shifted, "lower")).verdict == "worse"
    assert paired_difference(metric(base + 1, "near 1"), metric(base + 3, "near 1")).verdict == "worse"
    assert paired_difference(metric(base + 3, "near 1"), metric(base + 1, "near 1")).verdict == "better"
    assert paired_difference(metric(base, ""), metric(shifted, "")).verdict == ""


def test_differences_of_set_distances_use_the_same_resamples():
    spread = normal(20)
    difference = paired_difference(distance(3.0, 5 + spread), distance(3.5, 7 + spread))
    assert difference.verdict == "worse" and difference.interval == pytest.approx((0.5, 0.5))
    assert paired_difference(distance(3.0, 5 + spread), distance(3.5, 7 - spread)).verdict == ""


def test_without_values_or_intervals_nothing_is_reported_apart():
    missing = MetricResult("fid", "FID", Group.SAMPLES, better="lower").with_missing("no weights")
    assert paired_difference(distance(3.0, normal(20)), missing) is None
    difference = paired_difference(distance(3.0, normal(20)), distance(5.0, None))
    assert (difference.value, difference.interval, difference.verdict) == (2.0, None, "")
