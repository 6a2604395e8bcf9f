"""What a run remembers beside its tensors. Plain numbers, saved as JSON; importing this does not import torch."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from unified_vae.core.errors import CheckpointError
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
        pieces: micro-batches of a device's share that memory asked for; 0 where it did not ask.
        validation_pieces: the same of a micro-batch in validation.
        good_step: step of the checkpoint that the run goes back to when its numbers are no longer finite.
        skipped: steps that were skipped because a number was not finite, also those since undone.
        skipped_in_a_row: how many of them were the last ones.
        rollbacks: how often the run went back.
        lost_step: step at which the last of these was decided; -1 before the first.
        lr_scale: what the learning rate is multiplied by since then.
        norms: of the last gradients.
        spikes: gradients that were far longer than those before, also those since undone.
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
    pieces: int = 0
    validation_pieces: int = 1
    good_step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    rollbacks: int = 0
    lost_step: int = -1
    lr_scale: float = 1.0
    norms: list[float] = field(default_factory=list)
    spikes: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain values; floats survive the round trip bit for bit."""
        values = dataclasses.asdict(self)
        if math.isinf(self.plateau.best):
            values["plateau"]["best"] = None
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrainState:
        """The inverse of `to_json`.

        Raises:
            CheckpointError: an entry is missing, unknown or of another type.
        """
        try:
            plateau = dict(values["plateau"])
            if plateau["best"] is None:
                plateau["best"] = -math.inf
            state = cls(**{**values, "plateau": PlateauState(**plateau)})
            _check().validate_json(json.dumps(dataclasses.asdict(state)), strict=True)
        except (KeyError, TypeError, ValueError) as problem:
            why = " ".join(str(problem).split())
            raise CheckpointError(f"the numbers that the checkpoint holds cannot be read ({why}).") from problem
        return state

    def go_back_to(self, earlier: TrainState, lost_step: int, lr_factor: float) -> None:
        """Become an earlier state of the same run, except for what was learnt since: a lower rate, smaller pieces."""
        kept = {name: getattr(self, name) for name in ("pieces", "validation_pieces", "skipped", "spikes", "rollbacks")}
        lr_scale = self.lr_scale * lr_factor
        vars(self).update(vars(earlier) | kept, lr_scale=lr_scale, lost_step=lost_step, skipped_in_a_row=0)
        self.rollbacks += 1

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


@functools.cache
def _check() -> TypeAdapter[TrainState]:
    """Compares types. Made when it is first needed: it takes 30 ms."""
    return TypeAdapter(TrainState)
