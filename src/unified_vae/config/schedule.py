"""Schedules of a weight: pure functions of the part of the run that is done, so resume needs no state.

A schedule gives a factor that multiplies the weight. Progress runs from 0 (first step) to 1 (end).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from unified_vae.config.base import Config


class Constant(Config):
    """The full weight from the first step on."""

    kind: Literal["constant"] = "constant"


class Linear(Config):
    """From `start` to the full weight in a straight line over the first `warmup` of the run."""

    kind: Literal["linear"] = "linear"
    warmup: float = Field(default=0.1, gt=0, le=1)
    """Part of the run that the warm-up takes (0.1 is the first tenth)."""
    start: float = Field(default=0.0, ge=0)
    """Factor at the first step."""


class Cosine(Config):
    """From `start` to the full weight along half a cosine over the first `warmup` of the run."""

    kind: Literal["cosine"] = "cosine"
    warmup: float = Field(default=0.1, gt=0, le=1)
    """Part of the run that the warm-up takes (0.1 is the first tenth)."""
    start: float = Field(default=0.0, ge=0)
    """Factor at the first step."""


class Cyclical(Config):
    """`cycles` linear ramps from 0 to 1, each followed by a plateau (Fu et al. 2019, arXiv 1903.10145)."""

    kind: Literal["cyclical"] = "cyclical"
    cycles: int = Field(default=4, ge=1)
    """Number of cycles M over the run."""
    ramp: float = Field(default=0.5, gt=0, le=1)
    """Part R of each cycle that is ramp; the rest holds the full weight."""


WeightSchedule = Annotated[Constant | Linear | Cosine | Cyclical, Field(discriminator="kind")]


def factor(schedule: WeightSchedule, progress: float) -> float:
    """Return the factor at `progress` in [0, 1]; beyond 1 it stays where it ended."""
    t = min(max(progress, 0.0), 1.0)
    match schedule:
        case Constant():
            return 1.0
        case Linear(warmup=warmup, start=start):
            return start + (1.0 - start) * min(t / warmup, 1.0)
        case Cosine(warmup=warmup, start=start):
            return start + (1.0 - start) * 0.5 * (1.0 - math.cos(math.pi * min(t / warmup, 1.0)))
        case Cyclical(cycles=cycles, ramp=ramp):
            return 1.0 if t >= 1.0 else min((t * cycles % 1.0) / ramp, 1.0)


def warmup_end(schedule: WeightSchedule) -> float:
    """Return the progress from which the factor no longer changes: early stopping starts only then.

    A cyclical schedule never settles before its last plateau.
    """
    match schedule:
        case Constant():
            return 0.0
        case Linear(warmup=warmup) | Cosine(warmup=warmup):
            return warmup
        case Cyclical(cycles=cycles, ramp=ramp):
            return (cycles - 1 + ramp) / cycles


def describe(schedule: WeightSchedule) -> str:
    """Describe the schedule in a few words, for the table shown at start and on resume."""
    match schedule:
        case Constant():
            return "constant"
        case Linear(warmup=warmup, start=start) | Cosine(warmup=warmup, start=start):
            return f"{schedule.kind} warm-up from x{start:g} over the first {warmup:.0%} of the run"
        case Cyclical(cycles=cycles, ramp=ramp):
            return f"cyclical, {cycles} cycles, {ramp:.0%} ramp"
