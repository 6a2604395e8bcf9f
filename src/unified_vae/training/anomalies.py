"""NaN/Inf and gradient spikes: report them, roll back to the last good checkpoint, abort after some rollbacks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unified_vae.config.training import RecoveryConfig, TrainingConfig
from unified_vae.core.errors import Diverged
from unified_vae.core.events import Observer, RolledBack, StepSkipped
from unified_vae.data.batches import TrainBatch, batch_indices, gather
from unified_vae.data.dataset import PackedSplit
from unified_vae.training.checkpointer import Checkpointer
from unified_vae.training.distributed import Runtime
from unified_vae.training.loggers import SKIPPED_FILE, MetricsLog
from unified_vae.training.memory import try_or_none_on_oom
from unified_vae.training.state import TrainSchedule, TrainState
from unified_vae.training.train_step import GRADIENT_NORM, TrainStep

NORM_WINDOW = 64  # gradient norms that the running median is taken of
MIN_NORMS = 16  # norms before which there is no median
MAX_REPORTED = 10  # skipped steps per start that get a line each; all are in the file
MAX_NAMED = 4  # images that a line names; the file names all
SUMS = ("loss.total", "loss.nll", GRADIENT_NORM)  # metrics that are NaN/Inf because another one is


class NonFiniteError(Exception):
    """The weights give NaN/Inf: the run has to roll back.

    Attributes:
        step: the last one that was looked at.
        metrics: names of those that are NaN/Inf there.
        where: the end of the sentence, e.g. `in the validation of step 40`.
    """

    def __init__(self, step: int, metrics: Sequence[str], where: str) -> None:
        super().__init__(where)
        self.step = step
        self.metrics = metrics
        self.where = where


@dataclass(frozen=True)
class SkippedStep:
    """A step that changed nothing: its number, counted from 1, and the names of the metrics that were NaN/Inf."""

    step: int
    metrics: Sequence[str]
    consecutive: int


@dataclass(frozen=True)
class GradientSpike:
    """A step whose gradient norm, before clipping, was far above the median of those before it."""

    step: int
    norm: float
    median: float


class MetricAccumulator:
    """Sums the steps' metrics in the training state, so that they survive with it, and finds skipped steps and spikes.

    On a GPU reading a metric waits for the device, so the steps' metrics wait there together. What is counted depends
    on the steps alone, not on when they are read.

    Args:
        names: of the metrics of a step, the gradient norm last.
        scaled: whether gradients are scaled as for fp16; then one that overflows is skipped and not reported.
    """

    def __init__(self, names: Sequence[str], state: TrainState, config: RecoveryConfig, scaled: bool) -> None:
        self.names = list(names)
        self.state = state
        self.config = config
        self.scaled = scaled
        self._pending: list[Tensor] = []

    def __len__(self) -> int:
        """Steps that wait to be read."""
        return len(self._pending)

    def add(self, metrics: Tensor) -> None:
        """Add the metrics of the step that `state.step` counts as its newest."""
        self._pending.append(metrics)

    def reset(self) -> None:
        """Drop the steps that wait: they were undone."""
        self._pending.clear()

    def flush(self) -> list[SkippedStep | GradientSpike]:
        """Read and count the steps that wait; returns what is to be reported.

        It ends at the step with which too many were skipped in a row: what came after that will be undone.
        """
        if not self._pending:
            return []
        rows = [self._pending[0].tolist()] if len(self) == 1 else torch.stack(self._pending).tolist()
        first, state = self.state.step - len(rows) + 1, self.state
        self._pending.clear()
        events: list[SkippedStep | GradientSpike] = []
        for step, row in enumerate(rows, start=first):
            bad = [name for name, value in zip(self.names, row, strict=True) if not math.isfinite(value)]
            if not bad:
                for name, value in zip(self.names, row, strict=True):
                    state.log_sums[name] = state.log_sums.get(name, 0.0) + value
                state.log_count += 1
                state.consecutive_skips = 0
                norms = state.grad_norms
                median = sorted(norms)[len(norms) // 2] if len(norms) >= MIN_NORMS else math.inf
                norms.append(row[-1])
                del norms[:-NORM_WINDOW]
                if row[-1] > self.config.grad_spike_ratio * median:
                    state.grad_spikes += 1
                    events.append(GradientSpike(step, row[-1], median))
            elif not (self.scaled and bad == [GRADIENT_NORM]):
                state.skipped_steps += 1
                state.consecutive_skips += 1
                events.append(SkippedStep(step, tuple(bad), state.consecutive_skips))
                if state.consecutive_skips >= self.config.max_consecutive_skips:
                    break
        return events

    def means(self) -> dict[str, float]:
        """Means of the counted steps since the last call, with the counts of the whole run."""
        state = self.state
        values = {name: state.log_sums[name] / state.log_count for name in self.names}
        state.log_sums, state.log_count = {}, 0
        return {**values, "steps.skipped": float(state.skipped_steps), "gradient.spikes": float(state.grad_spikes)}


class AnomalyHandler:
    """Reports skipped steps and gradient spikes, and rolls a run with NaN/Inf back to its last good checkpoint."""

    def __init__(
        self,
        training: TrainingConfig,
        schedule: TrainSchedule,
        train: PackedSplit,
        state: TrainState,
        train_step: TrainStep,
        checkpointer: Checkpointer,
        metrics_log: MetricsLog | None,
        observer: Observer,
        runtime: Runtime,
    ) -> None:
        self.training = training
        self.schedule = schedule
        self.train_split = train
        self.state = state
        self.train_step = train_step
        self.checkpointer = checkpointer
        self.metrics_log = metrics_log
        self.observer = observer
        self.runtime = runtime
        self._num_reported = 0
        self._spike_epoch = -1

    def report(self, events: Sequence[SkippedStep | GradientSpike]) -> None:
        """Report what the accumulator found.

        Raises:
            NonFiniteError: too many steps in a row were skipped.
        """
        for event in events:
            epoch = (event.step - 1) // self.schedule.steps_per_epoch
            if isinstance(event, GradientSpike):
                if epoch == self._spike_epoch:  # one line per epoch; all are counted
                    continue
                self._spike_epoch, limit = epoch, self.training.max_grad_norm
                clipped = "not clipped, as training.max_grad_norm is null"
                if limit is not None:
                    clipped = f"clipped to {limit:g}"
                self.observer.notice(
                    f"step {event.step:,}: gradient norm {event.norm:.3g}, "
                    f"{event.norm / event.median:.0f} times the running median {event.median:.3g}; {clipped} "
                    f"({self.state.grad_spikes:,} so far)"
                )
                continue
            names = [str(self.train_split.names[index]) for index in self._indices(event.step)]
            self.observer.step_skipped(
                StepSkipped(event.step, epoch, self.state.rollbacks, tuple(event.metrics), tuple(names))
            )
            self._num_reported += 1
            if self._num_reported <= MAX_REPORTED:
                last = f" Further ones are only listed in {SKIPPED_FILE}." if self._num_reported == MAX_REPORTED else ""
                self.observer.notice(
                    f"step {event.step:,} skipped: NaN/Inf in {join_names(root_causes(event.metrics), 9)}. "
                    f"{self._culprits(event.step)[0]}{last}"
                )
            if event.consecutive >= self.training.recovery.max_consecutive_skips:
                where = f"in {event.consecutive} steps in a row, up to step {event.step:,}"
                raise NonFiniteError(event.step, event.metrics, where)

    def _indices(self, step: int) -> npt.NDArray[np.int64]:
        """The images of a step (counted from 1), over all ranks."""
        return batch_indices(self.schedule.seed, step - 1, len(self.train_split), self.schedule.batch_size)

    def _culprits(self, step: int) -> tuple[str, list[str], list[str]]:
        """A sentence on the images of a step that give NaN/Inf with the weights as they are, or else on its batch;
        the names of these images, if they are some of the batch, and of the metrics."""
        indices = self._indices(step)
        names, bad = [str(self.train_split.names[index]) for index in indices], None
        if self.runtime.is_main:
            epoch = (step - 1) // self.schedule.steps_per_epoch
            batch = TrainBatch(indices, epoch, gather(self.train_split, indices))
            bad = try_or_none_on_oom(lambda: self.train_step.find_non_finite(batch, step - 1), self.runtime)
        bad = bad or {}
        metrics = [name for name, is_bad in bad.items() if bool(is_bad.any())]
        culprits: list[str] = []
        if bad:
            images = torch.stack(list(bad.values())).any(0).tolist()
            culprits = [name for name, is_bad in zip(names, images, strict=True) if is_bad]
        if 0 < len(culprits) < len(names):
            sentence = f"Caused by {join_names(culprits)}, of {len(names):,} images ({join_names(metrics, 9)})."
            return sentence, culprits, metrics
        return f"Images of step {step:,}: {join_names(names)} ({SKIPPED_FILE} names all).", [], metrics

    # --- rolling back --------------------------------------------------------------------------------

    def rollback(self, error: NonFiniteError) -> None:
        """Return to the last good checkpoint with a lower learning rate. The caller saves and continues from there.

        Raises:
            Diverged: `max_rollbacks` is reached, or there is no checkpoint.
        """
        state, config = self.state, self.training.recovery
        if state.rollbacks >= config.max_rollbacks:
            self._abort(error, "")
        earlier = self.checkpointer.rollback(state.good_step)
        if earlier is None:
            self._abort(error, "There is no checkpoint to go back to. ")
        state.roll_back_to(earlier, error.step, config.lr_factor)
        if self.metrics_log:
            self.metrics_log.truncate(state.metrics_rows)
        self.observer.rolled_back(RolledBack(state.step))
        self.observer.notice(
            f"NaN/Inf in {join_names(root_causes(error.metrics), 9)} {error.where}: rolled back to step "
            f"{state.step:,}, continuing with {state.lr_scale:g} times the learning rate (rollback {state.rollbacks} "
            f"of {config.max_rollbacks})"
        )

    def _abort(self, error: NonFiniteError, problem: str) -> NoReturn:
        state = self.state
        self.checkpointer.delete_after(state.good_step)
        tried = (
            f", also after {state.rollbacks} rollback(s) with {state.lr_scale:.3g} of the learning rate"
            if state.rollbacks
            else ""
        )
        raise Diverged(
            f"training diverged: NaN/Inf in {join_names(root_causes(error.metrics), 9)} {error.where}{tried}. "
            f"{problem}{self._advice(error)} {self.checkpointer.describe_last_checkpoint()}"
        )

    def _advice(self, error: NonFiniteError) -> str:
        """What may have caused it and what to change, in a few sentences."""
        sentence, images, metrics = self._culprits(error.step)
        lr = self.training.optimizer.lr * self.state.lr_scale / 3
        lower = f"run the same command with a lower --lr ({lr:.1g}, say)"
        if images:
            return f"{sentence} Take these images out of the set if they are damaged, or {lower}."
        if self.state.rollback_step == error.step and self.state.rollbacks:
            return f"{sentence} It is the same step each time, whatever the rate: check these images first, or {lower}."
        terms = [name for name in self.train_step.names if name.startswith("loss.") and name not in SUMS]
        blamed = [name for name in (metrics or error.metrics) if name in terms]
        if blamed and len(blamed) < len(terms):
            return f"{sentence} Only {join_names(blamed)} fails: give it weight 0, or {lower}."
        if self.runtime.dtype != torch.float32:
            return f"{sentence} Train with --precision fp32, or {lower}."
        if self.training.max_grad_norm is None:
            return f"{sentence} Bound the gradients with --set training.max_grad_norm=1, or {lower}."
        return f"{sentence} {lower[0].upper()}{lower[1:]}."


def root_causes(metrics: Sequence[str]) -> list[str]:
    """Those of the names that the others follow from: single terms before sums of them, values before gradients."""
    return [name for name in metrics if name not in SUMS] or list(metrics)


def join_names(names: Sequence[str], most: int = MAX_NAMED) -> str:
    """`a, b and c`; where there are more than `most`, the first of them and a count."""
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most:,} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
