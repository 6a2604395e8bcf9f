"""Metric results with 95 % bootstrap intervals (Efron 1979), and paired differences of two models. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from unified_vae.core.rng import key
from unified_vae.evaluation import Group

RESAMPLES = 1000
LEVEL = 0.95

Better = Literal["higher", "lower", "near 1", ""]
Interval = tuple[float, float]
Numbers = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class MetricResult:
    """One metric of one model, with all that has to be said of it.

    Attributes:
        name: in the report, e.g. `psnr.pooled`.
        title: in the table.
        unit: in words, "" for a plain number.
        better: which direction is.
        evaluator: what computed it.
        resolution: what it saw, e.g. `64 px`.
        images: how many, of each set where two sets are compared.
        value: None where it is not available.
        interval: 95 %; None where there is none.
        missing: why there is no value and how to get it.
        note: why there is no interval, or another remark.
        resampled: the metric on resamples of the images, which are the same for all models on the same images.
        biased: whether resamples come out too large (see `bootstrap_interval`).
    """

    name: str
    title: str
    group: Group
    unit: str = ""
    better: Better = ""
    evaluator: str = "unified-vae"
    resolution: str = ""
    images: int = 0
    value: float | None = None
    interval: Interval | None = None
    missing: str = ""
    note: str = ""
    resampled: Numbers | None = None
    biased: bool = False

    def with_value(
        self,
        value: float,
        images: int,
        resampled: npt.ArrayLike | None = None,
        *,
        biased: bool = False,
        minimum: float = 0.0,
        note: str = "",
    ) -> MetricResult:
        """Return the same metric with its value.

        Args:
            resampled: the metric on resamples; None for no interval.
            minimum: bound of the interval of a biased metric.
        """
        if not math.isfinite(value):
            return self.with_missing("the values are NaN/Inf")
        numbers = None if resampled is None else np.asarray(resampled, dtype=np.float64)
        interval = None if numbers is None else bootstrap_interval(value, numbers, biased, minimum)
        return replace(self, value=value, images=images, interval=interval, note=note, resampled=numbers, biased=biased)

    def with_mean(
        self,
        values: npt.ArrayLike,
        seed: int,
        statistic: Callable[[Any], float] = float,
        images: int | None = None,
        note: str = "",
    ) -> MetricResult:
        """Return the same metric with a function of a mean over images as its value.

        Args:
            values: [images], or [images, columns].
            statistic: of the mean over images, a scalar or [columns]; the mean itself unless given.
            images: how many the result is of, where not of `values` alone.
        """
        table = np.asarray(values, dtype=np.float64)
        resampled = [statistic(table[rows].mean(0)) for rows in resamples(len(table), seed, self.name)]
        return self.with_value(statistic(table.mean(0)), images or len(table), resampled, note=note)

    def with_missing(self, reason: str) -> MetricResult:
        """Return the same metric without a value."""
        return replace(self, missing=reason.rstrip("."))

    def to_json(self) -> dict[str, Any]:
        """Return plain values, without the resamples."""
        content = asdict(replace(self, resampled=None))
        del content["resampled"], content["biased"], content["interval"]
        return {**content, "interval_95": None if self.interval is None else list(self.interval)}


@dataclass(frozen=True)
class Difference:
    """How a metric of a model differs from that of a reference model on the same images.

    Attributes:
        value: the model's minus the reference's.
        interval: 95 %, from the same resamples of both; None where a metric has none.
        verdict: `better` or `worse` than the reference; empty where the interval does not tell, or no direction is
            better.
    """

    value: float
    interval: Interval | None
    verdict: Literal["better", "worse", ""]


def resamples(images: int, seed: int, purpose: str, count: int = RESAMPLES) -> Iterator[Indices]:
    """Draw `count` times `images` image numbers with replacement, each a function of (seed, purpose, its number)."""
    for number in range(count):
        generator = np.random.Generator(np.random.PCG64(key(seed, "bootstrap", purpose, number)))
        yield generator.integers(0, images, images)


def bootstrap_interval(
    value: float, resampled: Numbers, biased: bool = False, minimum: float = -math.inf
) -> Interval | None:
    """Return the middle 95 % of resampled values; None where they are NaN/Inf.

    Args:
        biased: use the spread alone, around the value itself. A resample holds some images several times, and so fewer
            different ones: distances of sets and gaps of covariances all come out too large, while their spread is
            right.
        minimum: what a biased metric cannot be below.
    """
    if not np.isfinite(resampled).all():
        return None
    centered = resampled - resampled.mean() if biased else resampled
    low, high = (float(limit) for limit in np.quantile(centered, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    return (max(minimum, value + low), value + high) if biased else (low, high)


def paired_difference(reference: MetricResult, result: MetricResult) -> Difference | None:
    """Compare a metric of two models on the same images; None where one of them has no value."""
    if reference.value is None or result.value is None:
        return None
    value = result.value - reference.value
    a, b = reference.resampled, result.resampled
    if a is None or b is None or len(a) != len(b):
        return Difference(value, None, "")
    interval = bootstrap_interval(value, b - a, result.biased)
    if not result.better:
        return Difference(value, interval, "")
    # the same difference, of what grows as the metric gets better
    score: Callable[[Any], Any] = {"higher": lambda x: x, "lower": lambda x: -x, "near 1": lambda x: -abs(x - 1)}[
        result.better
    ]
    gain = bootstrap_interval(score(result.value) - score(reference.value), score(b) - score(a), result.biased)
    verdict: Literal["better", "worse", ""] = ""
    if gain is not None and not gain[0] <= 0 <= gain[1]:
        verdict = "better" if gain[0] > 0 else "worse"
    return Difference(value, interval, verdict)
