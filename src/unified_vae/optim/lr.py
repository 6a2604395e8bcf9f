"""Learning-rate schedules: pure functions of progress; the plateau's reductions are the only state.

Importing this does not import torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from unified_vae.config.optim import ConstantLR, CosineLR, LRScheduleConfig, PlateauLR


@dataclass
class PlateauState:
    """What the plateau schedule remembers; saved with the run.

    Attributes:
        reductions: how often the rate was reduced.
        best: best PSNR so far, dB.
        num_bad_epochs: validations since then without a gain.
    """

    reductions: int = 0
    best: float = -math.inf
    num_bad_epochs: int = 0

    def validated(self, schedule: LRScheduleConfig, psnr: float) -> None:
        """Count a validation; reduce the rate after `patience` of them without a gain."""
        if not isinstance(schedule, PlateauLR):
            return
        if psnr > self.best:
            self.best, self.num_bad_epochs = psnr, 0
            return
        self.num_bad_epochs += 1
        if self.num_bad_epochs >= schedule.patience:
            self.reductions, self.num_bad_epochs = self.reductions + 1, 0


def lr_factor(schedule: LRScheduleConfig, progress: float, reductions: int = 0) -> float:
    """The rate at `progress` in [0, 1], as a part of the peak.

    Args:
        schedule: a member of the typed union.
        progress: part of the run that is done.
        reductions: how often a plateau reduced the rate; 0 for the other schedules.
    """
    if progress < schedule.warmup:
        return progress / schedule.warmup
    match schedule:
        case ConstantLR():
            return 1.0
        case CosineLR(warmup=warmup, min_lr_ratio=least):
            done = min((progress - warmup) / (1.0 - warmup), 1.0)
            return least + (1.0 - least) * 0.5 * (1.0 + math.cos(math.pi * done))
        case PlateauLR(factor=factor, min_lr_ratio=least):
            return max(factor**reductions, least)
