"""What a run is to do, resolved to numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from unified_vae.config.data import DataConfig
from unified_vae.config.training import TrainingConfig
from unified_vae.losses.objective import Objective


@dataclass(frozen=True)
class Plan:
    """What a run is to do, resolved to numbers.

    Attributes:
        total_steps: optimizer steps of the whole run.
        steps_per_epoch: steps that see every training image once.
        batch_size: images per step over all devices.
        settled: step at which every warm-up has ended, from which the best weights are chosen.
        pca_psnr: dB that as many principal components as latents reach on the validation set; None where unknown.
    """

    seed: int
    total_steps: int
    steps_per_epoch: int
    batch_size: int
    settled: int
    training: TrainingConfig
    data: DataConfig
    pca_psnr: float | None = None

    def micro_batch(self, world_size: int, pieces: int) -> int:
        """Images that a device holds at once, where its share of a batch is taken in so many pieces."""
        return math.ceil(self.batch_size / world_size / pieces)

    def progress(self, step: int) -> float:
        """Part of the run that is done after `step` steps."""
        return step / self.total_steps


def settled_step(objective: Objective, training: TrainingConfig, total_steps: int) -> int:
    """The step at which all warm-ups, of weights and of the learning rate, have ended."""
    end = max(training.lr_schedule.warmup, objective.settled_at())
    return min(math.ceil(end * total_steps), total_steps)
