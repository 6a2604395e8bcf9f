"""How long a run is, and how far it is: plain numbers; the state is saved as JSON. Importing this loads no torch."""

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

RENAMED = {
    "waited": "num_bad_epochs",
    "pieces": "num_micro_batches",
    "validation_pieces": "validation_micro_batches",
    "skipped": "skipped_steps",
    "skipped_in_a_row": "consecutive_skips",
    "lost_step": "rollback_step",
    "norms": "grad_norms",
    "spikes": "grad_spikes",
}
"""Names in checkpoints of earlier versions -> names of today."""


@dataclass(frozen=True)
class TrainSchedule:
    """How long a run is, in numbers.

    Attributes:
        total_steps: optimizer steps of the whole run.
        steps_per_epoch: steps that see every training image once.
        batch_size: images per step over all ranks.
        selection_start_step: step at which every warm-up has ended, from which the best weights are selected.
        select_start: whether the weights of step 0 are a candidate as well.
    """

    seed: int
    total_steps: int
    steps_per_epoch: int
    batch_size: int
    selection_start_step: int
    select_start: bool = True

    def progress(self, step: int) -> float:
        """Part of the run that is done after `step` steps."""
        return step / self.total_steps

    def micro_batch_size(self, world_size: int, num_micro_batches: int) -> int:
        """The most images that a rank computes at once."""
        return math.ceil(self.batch_size / world_size / num_micro_batches)


@dataclass
class TrainState:
    """Progress is counted in optimizer steps; an epoch is only `step // steps_per_epoch`.

    Attributes:
        step: optimizer steps taken.
        validated_step: step of the last validation; -1 before the first.
        best_psnr: dB, of the best weights so far; None before the first candidate.
        best_step: step of those weights.
        mean_image_psnr: dB of answering with the mean image, at the last validation.
        reference_psnr: dB, of the last gain that counted for early stopping; None before the selection has started.
        num_bad_epochs: validations since then without such a gain.
        stopped_early: early stopping ended the run.
        plateau: state of the plateau schedule of the learning rate.
        log_sums: sums of the training metrics since they were last logged.
        log_count: steps in those sums.
        metrics_rows: rows of the metrics file that belong to this state.
        seconds: time spent training, over all starts of the run.
        num_micro_batches: micro-batches of a local batch after out-of-memory; 0 where there was enough.
        validation_micro_batches: the same of a micro-batch in validation.
        good_step: step of the checkpoint that a run with NaN/Inf rolls back to.
        skipped_steps: steps that were skipped because of NaN/Inf, also those since undone.
        consecutive_skips: how many of them were the last ones.
        rollbacks: how often the run was rolled back.
        rollback_step: step at which the last rollback was decided; -1 before the first.
        lr_scale: what the learning rate is multiplied by since then.
        grad_norms: of the last steps.
        grad_spikes: gradients far above those before, also those since undone.
    """

    step: int = 0
    validated_step: int = -1
    best_psnr: float | None = None
    best_step: int | None = None
    mean_image_psnr: float | None = None
    reference_psnr: float | None = None
    num_bad_epochs: int = 0
    stopped_early: bool = False
    plateau: PlateauState = field(default_factory=PlateauState)
    log_sums: dict[str, float] = field(default_factory=dict)
    log_count: int = 0
    metrics_rows: int = 0
    seconds: float = 0.0
    num_micro_batches: int = 0
    validation_micro_batches: int = 1
    good_step: int = 0
    skipped_steps: int = 0
    consecutive_skips: int = 0
    rollbacks: int = 0
    rollback_step: int = -1
    lr_scale: float = 1.0
    grad_norms: list[float] = field(default_factory=list)
    grad_spikes: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain values; floats survive the round trip bit for bit."""
        values = dataclasses.asdict(self)
        if math.isinf(self.plateau.best):
            values["plateau"]["best"] = None
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrainState:
        """The inverse of `to_json`, for checkpoints of earlier versions too.

        Raises:
            CheckpointError: an entry is missing, unknown or of another type.
        """
        try:
            values = {RENAMED.get(name, name): value for name, value in values.items()}
            plateau = {RENAMED.get(name, name): value for name, value in values["plateau"].items()}
            if plateau["best"] is None:
                plateau["best"] = -math.inf
            state = cls(**{**values, "plateau": PlateauState(**plateau)})
            _checker().validate_json(json.dumps(dataclasses.asdict(state)), strict=True)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            why = " ".join(str(error).split())
            raise CheckpointError(f"the checkpoint's training state cannot be read ({why}).") from error
        return state

    def roll_back_to(self, earlier: TrainState, rollback_step: int, lr_factor: float) -> None:
        """Become an earlier state of the same run, except for what was learned since: a lower rate, micro-batches."""
        names = ("num_micro_batches", "validation_micro_batches", "skipped_steps", "grad_spikes", "rollbacks")
        kept = {name: getattr(self, name) for name in names}
        lr_scale = self.lr_scale * lr_factor
        vars(self).update(vars(earlier) | kept, lr_scale=lr_scale, rollback_step=rollback_step, consecutive_skips=0)
        self.rollbacks += 1

    def reset_best(self) -> None:
        """Start the selection of the best weights anew."""
        self.best_psnr = self.best_step = self.reference_psnr = None
        self.num_bad_epochs = 0

    def update_best(self, psnr: float, min_delta: float) -> bool:
        """Count a validation after the selection has started; returns whether it is the best so far.

        Any gain makes the best weights; only one of more than `min_delta` dB resets early stopping.
        """
        if self.reference_psnr is None or psnr > self.reference_psnr + min_delta:
            self.reference_psnr, self.num_bad_epochs = psnr, 0
        else:
            self.num_bad_epochs += 1
        best = self.best_psnr is None or psnr > self.best_psnr
        if best:
            self.best_psnr, self.best_step = psnr, self.step
        return best


@functools.cache
def _checker() -> TypeAdapter[TrainState]:
    """Compares types. Made when it is first needed: it takes 30 ms."""
    return TypeAdapter(TrainState)
