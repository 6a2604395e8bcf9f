"""95 % intervals by the bootstrap over images (Efron 1979): resamples are a pure function of the seed and a purpose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unified_vae.core.counter import key

RESAMPLES = 1000
LEVEL = 0.95

Numbers = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """The limits of a value."""

    low: float
    high: float


def resamples(images: int, seed: int, purpose: str, count: int = RESAMPLES) -> Iterator[Indices]:
    """`count` draws of `images` image numbers with replacement, each a function of (seed, purpose, its number)."""
    for number in range(count):
        generator = np.random.Generator(np.random.PCG64(key(seed, "bootstrap", purpose, number)))
        yield generator.integers(0, images, images)


def interval_of_means(
    values: npt.ArrayLike,
    seed: int,
    purpose: str,
    statistic: Callable[[Numbers], float] = float,
    count: int = RESAMPLES,
) -> Interval:
    """The interval of what is a function of means over images.

    Args:
        values: [images], or [images, columns].
        statistic: of the mean over images, a scalar or [columns]; the mean itself unless given.
    """
    table = np.asarray(values, dtype=np.float64)
    return percentiles([statistic(table[rows].mean(0)) for rows in resamples(len(table), seed, purpose, count)])


def percentiles(found: npt.ArrayLike) -> Interval:
    """The middle 95 % of resampled values: for what a resample leaves unbiased."""
    low, high = np.quantile(np.asarray(found, dtype=np.float64), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def around(value: float, found: npt.ArrayLike, least: float = 0.0) -> Interval:
    """The spread of resampled values, placed around the value itself.

    A resample holds some images several times, and so fewer different ones: distances of sets and gaps of
    covariances all come out too large, while their spread is right.

    Args:
        least: what the value cannot be below.
    """
    numbers = np.asarray(found, dtype=np.float64)
    limits = percentiles(numbers - numbers.mean())
    return Interval(max(least, value + limits.low), value + limits.high)
