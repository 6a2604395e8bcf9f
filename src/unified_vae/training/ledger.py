"""The numbers of the steps, read when somebody needs them: their sums, which steps were skipped, which gradients leapt.

On a GPU reading waits for the device, so the steps' numbers wait there together. What is counted depends on
the steps alone, not on when they are read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unified_vae.config.training import RecoveryConfig
from unified_vae.training.state import TrainState
from unified_vae.training.step import NORM

WINDOW = 64  # norms of gradients that the running median is taken of
FEWEST = 16  # norms before which it says nothing


@dataclass(frozen=True)
class Skipped:
    """A step that changed nothing.

    Attributes:
        step: its number, counted from 1.
        terms: names of the numbers that were not finite.
        in_a_row: skipped steps up to this one.
    """

    step: int
    terms: Sequence[str]
    in_a_row: int


@dataclass(frozen=True)
class Leap:
    """A step whose gradient was far longer than usual.

    Attributes:
        step: its number, counted from 1.
        norm: of the gradient, before clipping.
        median: of the norms before it.
    """

    step: int
    norm: float
    median: float


class Ledger:
    """Keeps the books of the steps in the run's state, so that they survive with it.

    Args:
        names: of the numbers of a step, the gradient's norm last.
        scaled: whether gradients are scaled as for fp16; then one that overflows is skipped and is no news.
    """

    def __init__(self, names: Sequence[str], state: TrainState, rule: RecoveryConfig, scaled: bool) -> None:
        self.names = list(names)
        self.state = state
        self.rule = rule
        self.scaled = scaled
        self._waiting: list[Tensor] = []

    def note(self, measured: Tensor) -> None:
        """The numbers of the step that `state.step` counts as its newest, on the device."""
        self._waiting.append(measured)

    def __len__(self) -> int:
        """Steps that wait to be read."""
        return len(self._waiting)

    def forget(self) -> None:
        """The steps that wait were undone."""
        self._waiting.clear()

    def settle(self) -> list[Skipped | Leap]:
        """Read and count the steps that wait; returns those worth a word.

        It ends at the step with which `rule.max_consecutive_skips` were skipped in a row: what came after is undone.
        """
        if not self._waiting:
            return []
        rows = [self._waiting[0].tolist()] if len(self) == 1 else torch.stack(self._waiting).tolist()
        first = self.state.step - len(rows) + 1
        self._waiting.clear()
        found = []
        for step, row in enumerate(rows, start=first):
            if event := self._count(step, row):
                found.append(event)
            if self.state.skipped_in_a_row >= self.rule.max_consecutive_skips:
                break
        return found

    def _count(self, step: int, row: Sequence[float]) -> Skipped | Leap | None:
        state = self.state
        bad = [name for name, value in zip(self.names, row, strict=True) if not math.isfinite(value)]
        if not bad:
            for name, value in zip(self.names, row, strict=True):
                state.log_sums[name] = state.log_sums.get(name, 0.0) + value
            state.log_count += 1
            state.skipped_in_a_row = 0
            return self._leap(step, row[-1])
        if self.scaled and bad == [NORM]:
            return None
        state.skipped += 1
        state.skipped_in_a_row += 1
        return Skipped(step, tuple(bad), state.skipped_in_a_row)

    def _leap(self, step: int, norm: float) -> Leap | None:
        norms = self.state.norms
        median = sorted(norms)[len(norms) // 2] if len(norms) >= FEWEST else math.inf
        norms.append(norm)
        del norms[:-WINDOW]
        if norm <= self.rule.grad_spike_ratio * median:
            return None
        self.state.spikes += 1
        return Leap(step, norm, median)

    def means(self) -> dict[str, float]:
        """Means of the counted steps since this was last asked for, with the counts of the whole run."""
        state = self.state
        values = {name: state.log_sums[name] / state.log_count for name in self.names}
        state.log_sums, state.log_count = {}, 0
        return {**values, "steps.skipped": float(state.skipped), "gradient.spikes": float(state.spikes)}
