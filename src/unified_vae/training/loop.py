"""The training loop, counted in optimizer steps.

    for each step: images -> model -> objective -> backward -> optimizer -> averaged weights
        log, validate, draw, save where it is due; stop where patience, a signal or the end says so

Order, augmentation and noise are pure functions of (seed, epoch, index, step), and all else is in
`TrainState` and the checkpoint's tensors: a run that was killed anywhere ends in the same bits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unified_vae.core.errors import Diverged, EnvironmentProblem
from unified_vae.data.augment import augment
from unified_vae.data.batches import TrainBatch, train_batches, validation_batches
from unified_vae.data.config import DataConfig
from unified_vae.data.packing.packed import PackedSplit
from unified_vae.losses.objective import Objective
from unified_vae.models.vae import VAE
from unified_vae.optim.lr import lr_factor
from unified_vae.training.config import TrainingConfig
from unified_vae.training.ema import EMA
from unified_vae.training.metrics_log import MetricsLog
from unified_vae.training.observers import (
    LossesLogged,
    Observer,
    SheetDrawn,
    StepDone,
    Validated,
)
from unified_vae.training.runtime import Runtime
from unified_vae.training.saver import Saver
from unified_vae.training.sheets import SheetPainter
from unified_vae.training.signals import Signals
from unified_vae.training.state import TrainState
from unified_vae.training.step import Stepper
from unified_vae.training.validation import validate

SMALLEST_SCALE = 1e-3  # of the fp16 gradients: so small only when every step overflows


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

    def micro_batch(self, world_size: int) -> int:
        """Images that a device holds at once."""
        return math.ceil(self.batch_size / world_size / self.training.accumulate)

    def progress(self, step: int) -> float:
        """Part of the run that is done after `step` steps."""
        return step / self.total_steps


def settled_step(objective: Objective, training: TrainingConfig, total_steps: int) -> int:
    """The step at which all warm-ups, of weights and of the learning rate, have ended."""
    end = max(training.lr_schedule.warmup, objective.settled_at())
    return min(math.ceil(end * total_steps), total_steps)


@dataclass
class Loop:
    """Runs a plan from where `state` stands to its end, or to a signal: then `stopped_by` is its number."""

    plan: Plan
    state: TrainState
    runtime: Runtime
    stepper: Stepper
    ema: EMA[VAE]
    train: PackedSplit
    validation: PackedSplit
    saver: Saver
    metrics: MetricsLog | None
    painter: SheetPainter | None
    observer: Observer
    signals: Signals
    stopped_by: int = 0  # the signal that all ranks agreed to stop for; what arrives after that has to wait
    _sums: Tensor = field(init=False)
    _clock: float = field(init=False, default=0.0)
    _clock_step: int = field(init=False, default=0)

    def run(self) -> None:
        """Take the remaining steps."""
        self._restore_sums()
        self._restart_clock()
        self.saver.started()
        if self._validation_due():  # the checkpoint was saved just before its validation
            self._validate_if_due()
            self._save_if_due()
        if self._over():
            return
        batches = train_batches(
            self.train,
            seed=self.plan.seed,
            start_step=self.state.step,
            end_step=self.plan.total_steps,
            batch_size=self.plan.batch_size,
            rank=self.runtime.rank,
            world_size=self.runtime.world_size,
            workers=self.plan.data.workers,
            pin_memory=self.runtime.device.type == "cuda",
        )
        for batch in self._guarded(batches):
            self._step(batch)
            self._log_if_due()
            self._validate_if_due()
            self._save_if_due()
            if self._over():
                break

    def _guarded(self, batches: Iterator[TrainBatch]) -> Iterator[TrainBatch]:
        """The batches; where a loader process dies, what was trained so far is saved first."""
        while True:
            try:
                batch = next(batches, None)
            except RuntimeError as problem:  # torch's only word for a worker that was killed, hangs or raised
                self.signals.save = True
                self._save_if_due()
                raise EnvironmentProblem(
                    f"the images could not be loaded after step {self.state.step:,} ({str(problem).splitlines()[0]}). "
                    f"{self.saver.what_is_left()} Run the same command; with --set data.workers=0 if it happens again."
                ) from problem
            if batch is None:
                return
            yield batch

    def _step(self, batch: TrainBatch) -> None:
        plan, step = self.plan, self.state.step
        raw = batch.images.to(self.runtime.device, non_blocking=True)
        raw = augment(raw, batch.indices, config=plan.data.augment, seed=plan.seed, epoch=batch.epoch)
        measured = self.stepper.take(raw.float() / 255, step, plan.progress(step), self._lr(step))
        self._sums += measured.to(self._sums.dtype)
        self.state.log_count += 1
        self.state.step += 1
        if self.runtime.device.type == "cpu":
            self._check_finite()  # reading costs nothing here, so the very step can be named
        self.observer.step_done(StepDone(self.state.step, plan.total_steps, plan.steps_per_epoch, plan.batch_size))

    def _lr(self, step: int) -> float:
        training = self.plan.training
        factor = lr_factor(training.lr_schedule, self.plan.progress(step + 1), self.state.plateau.reductions)
        return training.optimizer.lr * factor

    # --- numbers -------------------------------------------------------------------------------------

    def _restore_sums(self) -> None:
        sums = [self.state.log_sums.get(name, 0.0) for name in self.stepper.names]
        self._sums = torch.tensor(sums, dtype=self.runtime.sums_dtype, device=self.runtime.device)

    def _check_finite(self) -> None:
        """Nothing that is not finite was applied or is saved: the step itself skipped the update."""
        scaled = self.stepper.scaler.is_enabled()  # fp16 may overflow now and then; the scaler skips and adapts
        values = dict(zip(self.stepper.names, self._sums.tolist(), strict=True))
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if scaled and self.stepper.scaler.get_scale() < SMALLEST_SCALE:
            bad.append("gradient.norm")
        if bad:
            first = self.state.step - self.state.log_count + 1
            span = (
                f"step {self.state.step}"
                if self.runtime.device.type == "cpu"
                else f"steps {first} to {self.state.step}"
            )
            raise Diverged(
                f"training diverged at {span}: no finite value any more in {', '.join(bad)}. "
                f"{self.saver.what_is_left()} Run the same command with a lower --lr (a third, say)."
            )

    def _log_if_due(self) -> None:
        """Means of the training numbers since the last entry, every n steps and before each validation."""
        plan, state = self.plan, self.state
        due = state.step % plan.training.log_every_steps == 0 or self._validation_due()
        if not due or state.log_count == 0:
            return
        self._check_finite()
        means = (self._sums / state.log_count).tolist()
        before = state.step - 1
        values = dict(zip(self.stepper.names, means, strict=True))
        values["bits_per_dim"] = float(
            self.stepper.objective.bits_per_dim(torch.tensor(values["loss.nll"]), torch.tensor(values["rate.nats"]))
        )
        values["beta"] = self.stepper.objective.beta(plan.progress(before))
        values["lr"] = self._lr(before)
        if (sigma := self.stepper.objective.sigma()) is not None:
            values["sigma"] = sigma
        steps, seconds = state.step - self._clock_step, time.monotonic() - self._clock
        speed = steps * plan.batch_size / seconds if seconds > 0 else 0.0
        if self.metrics:
            self.metrics.write("train", state.step, state.step / plan.steps_per_epoch, values)
        self.observer.losses_logged(LossesLogged(state.step, values, speed, self.runtime.memory()))
        self._sums.zero_()
        state.log_count = 0
        self._restart_clock()

    def _restart_clock(self) -> None:
        self._clock, self._clock_step = time.monotonic(), self.state.step

    # --- validation ----------------------------------------------------------------------------------

    def _validation_due(self) -> bool:
        state, plan = self.state, self.plan
        if state.step == 0 or state.validated_step == state.step:
            return False
        epochs, rest = divmod(state.step, plan.steps_per_epoch)
        at_epoch = rest == 0 and epochs % plan.training.validate_every_epochs == 0
        return at_epoch or state.step >= plan.total_steps

    def _validate_if_due(self) -> None:
        asked_to_stop = self.signals.stop and self.runtime.world_size == 1
        if not self._validation_due() or asked_to_stop:  # then the resumed run validates first
            return
        state, plan = self.state, self.plan
        started = time.monotonic()
        result = validate(
            self.ema.model,
            self.stepper.objective,
            validation_batches(
                self.validation,
                batch_size=plan.micro_batch(self.runtime.world_size),
                rank=self.runtime.rank,
                world_size=self.runtime.world_size,
            ),
            self.runtime,
            plan.progress(state.step),
            plan.pca_psnr,
        )
        psnr = result.values["psnr"]
        armed = state.step >= plan.settled
        best = armed and state.judge(psnr, plan.training.early_stopping.min_delta)
        if armed:
            state.plateau.validated(plan.training.lr_schedule, psnr)
        patience = plan.training.early_stopping.patience
        state.stopped_early = patience is not None and state.waited >= patience and state.step < plan.total_steps
        state.validated_step, state.mean_image_psnr = state.step, result.values["psnr.mean_image"]
        if self.metrics:
            self.metrics.write("validation", state.step, state.step / plan.steps_per_epoch, result.values)
        epoch = round(state.step / plan.steps_per_epoch)
        self.observer.validated(
            Validated(
                state.step, epoch, result.values, result.kl_per_unit, best, armed, state.waited, patience,
                time.monotonic() - started,
            )
        )  # fmt: skip
        self._paint_if_due(epoch)
        self._restart_clock()

    def _paint_if_due(self, epoch: int) -> None:
        every = self.plan.training.samples.every_epochs
        last = self.state.step >= self.plan.total_steps or self.state.stopped_early
        if self.painter is None or not (epoch <= 1 or epoch % every == 0 or last):
            return
        for tag, path in self.painter.paint(self.ema.model, self.state.step, f"epoch-{epoch:04d}").items():
            self.observer.sheet_drawn(SheetDrawn(self.state.step, tag, path))

    # --- saving and stopping -------------------------------------------------------------------------

    def _save_if_due(self) -> None:
        """Save after a validation, when asked by a signal, and at least every few minutes.

        The flags are shared first, so that all ranks act at the same step.
        """
        wanted = self.signals.save or self.saver.time_is_up() or self.saver.is_keepsake(self.state.step)
        self.stopped_by, save = self.runtime.agree([self.signals.stop, int(wanted)])
        self.signals.save = False
        just_validated = self.state.validated_step == self.state.step
        if not (self.stopped_by or save or just_validated):
            return
        self._check_finite()
        self.state.log_sums = dict(zip(self.stepper.names, self._sums.tolist(), strict=True))
        if self.metrics:
            self.metrics.sync()
            self.state.metrics_rows = self.metrics.rows
        self.saver.save(self.state)

    def _over(self) -> bool:
        state = self.state
        return bool(self.stopped_by) or state.stopped_early or state.step >= self.plan.total_steps
