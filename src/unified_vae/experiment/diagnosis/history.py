"""What a run's metrics file says about its course: is it still rising, has it fallen, where has it been. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ENOUGH = 4  # points below which a course is too short to be judged

Course = Sequence[tuple[int, float]]
"""(step, value) pairs, by ascending step."""


@dataclass(frozen=True)
class History:
    """The course of a run.

    Attributes:
        validation: (step, dB) of the averaged weights.
        training: (step, dB) from the mean squared error of training, latents drawn; empty without that term.
        path: (rate, distortion) of each validation, both in nats an image.
        rates: (rate in nats an image, dB) of each validation.
        beta: what the last training row says; None where there is none.
        sigma: likewise.
        last: the figures of the last validation.
    """

    validation: Course = ()
    training: Course = ()
    path: Sequence[tuple[float, float]] = ()
    beta: float | None = None
    sigma: float | None = None
    last: Mapping[str, Any] = field(default_factory=dict)
    rates: Sequence[tuple[float, float]] = ()

    @classmethod
    def read(cls, path: Path, until: int | None = None) -> History:
        """From a metrics file, also one that is being written; rows that are cut off are left out.

        Args:
            until: only rows of up to this step.
        """
        rows = [row for row in _rows(path) if until is None or row["step"] <= until]
        validation = [row for row in rows if row["split"] == "validation"]
        training = [row for row in rows if row["split"] == "train"]
        last = training[-1] if training else {}
        return cls(
            [(row["step"], row["psnr"]) for row in validation],
            [(row["step"], _decibel(row["loss.mse"])) for row in training if "loss.mse" in row],
            [
                (row["rate.nats"], row["distortion.nats" if "distortion.nats" in row else "loss.nll"])
                for row in validation
            ],
            last.get("beta"),
            last.get("sigma"),
            validation[-1] if validation else {},
            [(row["rate.nats"], row["psnr"]) for row in validation],
        )

    @property
    def steps(self) -> int:
        """The last step there is a row of."""
        return max((course[-1][0] for course in (self.validation, self.training) if course), default=0)

    def second_half(self) -> float | None:
        """dB that the second half of the run brought; None where the run is too short to tell.

        Learning curves rise about evenly on a logarithmic axis of steps, so this is also about what doubling the
        run would bring. By validations; where there are too few of them, by the training rows.
        """
        if len(self.validation) >= ENOUGH:
            return self.validation[-1][1] - at(self.validation, self.validation[-1][0] / 2)
        if len(self.training) >= 2 * ENOUGH:
            end = self.training[-1][0]
            return _mean(self.training, 0.8 * end, end) - _mean(self.training, 0.4 * end, 0.6 * end)
        return None

    def fall(self) -> float:
        """dB that the last validation lies below the best one."""
        values = [value for _, value in self.validation]
        return max(values) - values[-1] if values else 0.0

    def learned_since_best(self) -> float:
        """dB that training gained after the best validation."""
        if not self.validation or len(self.training) < ENOUGH:
            return 0.0
        best = max(self.validation, key=lambda point: point[1])[0]
        return self.training[-1][1] - at(self.training, best)


def at(course: Course, step: float) -> float:
    """The value at a step, in a straight line between neighbours."""
    before = [point for point in course if point[0] <= step]
    after = [point for point in course if point[0] >= step]
    if not before or not after:
        return (after or before)[0 if after else -1][1]
    (left, low), (right, high) = before[-1], after[0]
    return low if right == left else low + (high - low) * (step - left) / (right - left)


def _mean(course: Course, start: float, end: float) -> float:
    """Over the points between two steps; where there are none, the value in their middle."""
    values = [value for step, value in course if start <= step <= end]
    return sum(values) / len(values) if values else at(course, (start + end) / 2)


def _decibel(mse: float) -> float:
    return -10 * math.log10(max(mse, 1e-12))


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the last line of a run that is writing it
        if isinstance(row, dict) and {"split", "step"} <= set(row):
            rows.append(row)
    return rows
