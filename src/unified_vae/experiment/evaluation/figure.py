"""One measured number with all that has to be said of it: unit, interval, evaluator, resolution, count."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from unified_vae.experiment.evaluation.request import Group
from unified_vae.metrics.bootstrap import Interval, interval_of_means

Better = Literal["higher", "lower", "near 1", ""]


@dataclass(frozen=True, eq=False)
class PerImage:
    """What a figure is the mean of, kept so that two models can be compared image by image.

    Attributes:
        values: [images], or [images, columns].
        statistic: of the mean over images.
    """

    values: npt.NDArray[np.float64]
    statistic: Callable[[Any], float] = float

    def value(self) -> float:
        """Over all images."""
        return self.statistic(self.values.mean(0))


@dataclass(frozen=True)
class Figure:
    """A row of the table.

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
    per_image: PerImage | None = None

    def ranks(self) -> bool:
        """Whether it has a value of which one direction is better."""
        return self.value is not None and self.better != ""

    def measured(self, value: float, interval: Interval | None, images: int, note: str = "") -> Figure:
        """The same with a number."""
        if not math.isfinite(value):
            return self.unavailable("the numbers are not finite")
        known = interval if interval and math.isfinite(interval.low) and math.isfinite(interval.high) else None
        return replace(self, value=value, interval=known, images=images, note=note)

    def averaged(self, values: npt.ArrayLike, seed: int, statistic: Callable[[Any], float] = float) -> Figure:
        """The same with a function of a mean over images, and the interval by resampling them."""
        each = PerImage(np.asarray(values, dtype=np.float64), statistic)
        interval = interval_of_means(each.values, seed, self.name, statistic)
        return replace(self.measured(each.value(), interval, len(each.values)), per_image=each)

    def unavailable(self, why: str) -> Figure:
        """The same without a number."""
        return replace(self, missing=why.rstrip("."))

    def to_json(self) -> dict[str, Any]:
        """Plain values: everything but the images' own."""
        content = asdict(replace(self, per_image=None))
        del content["per_image"], content["interval"]
        limits = None if self.interval is None else [self.interval.low, self.interval.high]
        return {**content, "interval_95": limits, "group": self.group.value}
