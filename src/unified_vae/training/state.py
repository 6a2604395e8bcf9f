"""What a run remembers beside its tensors. Plain numbers, saved as JSON; importing this does not import torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from unified_vae.optim.lr import PlateauState


@dataclass
class TrainState:
    """Progress is counted in optimizer steps; an epoch is only `step // steps_per_epoch`.

    Attributes:
        step: optimizer steps taken.
        validated_step: step of the last validation; -1 before the first.
        best_psnr: dB, of the best weights so far; None before the choice has begun.
        best_step: step of those weights.
        mean_image_psnr: dB of answering with the mean image, at the last validation.
        reference_psnr: dB, of the last gain that counted for patience; None before the choice has begun.
        waited: validations since then without such a gain.
        stopped_early: patience ran out.
        plateau: state of the plateau schedule of the learning rate.
        log_sums: sums of the training numbers since they were last logged.
        log_count: steps in those sums.
        metrics_rows: rows of the metrics file that belong to this state.
        seconds: time spent training, over all starts of the run.
    """

    step: int = 0
    validated_step: int = -1
    best_psnr: float | None = None
    best_step: int | None = None
    mean_image_psnr: float | None = None
    reference_psnr: float | None = None
    waited: int = 0
    stopped_early: bool = False
    plateau: PlateauState = field(default_factory=PlateauState)
    log_sums: dict[str, float] = field(default_factory=dict)
    log_count: int = 0
    metrics_rows: int = 0
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain values; floats survive the round trip bit for bit."""
        values = dataclasses.asdict(self)
        if math.isinf(self.plateau.best):
            values["plateau"]["best"] = None
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrainState:
        """The inverse of `to_json`."""
        plateau = dict(values["plateau"])
        if plateau["best"] is None:
            plateau["best"] = -math.inf
        return cls(**{**values, "plateau": PlateauState(**plateau)})

    def forget_best(self) -> None:
        """Begin the choice of the best weights anew."""
        self.best_psnr = self.best_step = self.reference_psnr = None
        self.waited = 0

    def judge(self, psnr: float, min_delta: float) -> bool:
        """Count a validation whose turn has come; returns whether it is the best so far.

        Any gain makes the best weights; only one of more than `min_delta` dB renews the patience.
        """
        if self.reference_psnr is None or psnr > self.reference_psnr + min_delta:
            self.reference_psnr, self.waited = psnr, 0
        else:
            self.waited += 1
        best = self.best_psnr is None or psnr > self.best_psnr
        if best:
            self.best_psnr, self.best_step = psnr, self.step
        return best
