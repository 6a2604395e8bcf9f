"""The training loop, counted in optimizer steps.

    for each step: images -> model -> objective -> backward -> optimizer -> averaged weights
        log, validate, draw, save where it is due; stop where patience, a signal or the end says so

Order, augmentation and noise are pure functions of (seed, epoch, index, step), and all else is in
`TrainState` and the checkpoint's tensors: a run that was killed anywhere ends in the same bits.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unified_vae.config.loss import LIKELIHOOD_METRICS
from unified_vae.core.device import to_device
from unified_vae.core.durable import reason
from unified_vae.data.augment import augment
from unified_vae.data.batches import TrainBatch, train_batches, validation_batches
from unified_vae.data.dataset import PackedSplit
from unified_vae.models.vae import VAE
from unified_vae.optim.lr import lr_factor
from unified_vae.training.ema import EMA
from unified_vae.training.ledger import Ledger
from unified_vae.training.memory import MicroBatches, attempted
from unified_vae.training.metrics_log import MetricsLog
from unified_vae.training.observers import (
    LossesLogged,
    Observer,
    SheetDrawn,
    StepDone,
    Validated,
)
from unified_vae.training.plan import Plan
from unified_vae.training.recovery import Lost, Recovery
from unified_vae.training.runtime import Runtime
from unified_vae.training.saver import Saver
from unified_vae.training.sheets import SheetPainter
from unified_vae.training.signals import Signals
from unified_vae.training.state import TrainState
from unified_vae.training.step import NORM, Stepper
from unified_vae.training.validation import ValidationResult, validate

SMALLEST_SCALE = 1e-3  # of the fp16 gradients: so small only when every step overflows
MOST_UNREAD = 100  # steps whose numbers may wait on the device


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
    resident: Tensor | None = None  # the training images on the device, where they fit
    stopped_by: int = 0  # the signal that all ranks agreed to stop for; what arrives after that has to wait
    ledger: Ledger = field(init=False)
    recovery: Recovery = field(init=False)
    _clock: float = field(init=False, default=0.0)
    _clock_step: int = field(init=False, default=0)
    _waited: float = field(init=False, default=0.0)  # seconds for images since the clock was set

    def __post_init__(self) -> None:
        rule, scaled = self.plan.training.recovery, self.stepper.scaler.is_enabled()
        self.ledger = Ledger(self.stepper.names, self.state, rule, scaled)
        self.recovery = Recovery(
            self.plan, self.state, self.stepper, self.train, self.saver, self.metrics, self.observer
        )

    def run(self) -> None:
        """Take the remaining steps, some of them again after numbers that were not finite.

        Raises:
            Diverged: going back did not help.
        """
        self.saver.started()
        if self.state.step == 0:
            self._save()  # what a run that fails before its first validation goes back to
        while True:
            try:
                self._go_on()
                return
            except Lost as found:
                lost = found
            self.ledger.forget()
            self.recovery.go_back(lost)
            self._save()

    def _go_on(self) -> None:
        self._restart_clock()
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
            pin_memory=self.runtime.device.type == "cuda",
            cached_images=self.resident,
        )
        with contextlib.closing(batches):
            for batch in self._guarded(batches):
                self._step(batch)
                self._log_if_due()
                self._validate_if_due()
                self._save_if_due()
                if self._over():
                    break

    def _guarded(self, batches: Iterator[TrainBatch]) -> Iterator[TrainBatch]:
        """The batches; what they were waited for is counted."""
        while True:
            begun = time.monotonic()
            batch = next(batches, None)
            if batch is None:
                return
            self._waited += time.monotonic() - begun
            yield batch

    def _step(self, batch: TrainBatch) -> None:
        plan, step = self.plan, self.state.step
        raw = to_device(batch.images, self.runtime.device)
        raw = augment(raw, batch.indices, config=plan.data.augment, seed=plan.seed, epoch=batch.epoch)
        measured = self.stepper.take(raw, step, plan.progress(step), self._lr(step))
        self.state.step += 1
        self.ledger.note(measured)
        if not self.runtime.reading_waits or len(self.ledger) >= MOST_UNREAD:
            self._settle()
        self._say_smaller_pieces()
        self.observer.step_done(StepDone(self.state.step, plan.total_steps, plan.steps_per_epoch, plan.batch_size))

    def _lr(self, step: int) -> float:
        training = self.plan.training
        factor = lr_factor(training.lr_schedule, self.plan.progress(step + 1), self.state.plateau.reductions)
        return training.optimizer.lr * factor * self.state.lr_scale

    def _say_smaller_pieces(self) -> None:
        """Once, after memory did not suffice; and remember it."""
        pieces, state, plan = self.stepper.micro_batches.pieces, self.state, self.plan
        if pieces == (state.pieces or plan.training.gradient_accumulation_steps):
            return
        state.pieces = pieces
        self.observer.notice(
            f"out of memory: from step {state.step:,} on, micro-batches of at most "
            f"{plan.micro_batch(self.runtime.world_size, pieces)} images, {pieces} of them to a batch on each device. "
            "Batches, order and noise stay the same, and so does the result but for rounding; a resumed run starts so"
        )

    # --- numbers -------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Read the steps' numbers, which waits for the device; say what was skipped.

        Raises:
            Lost: they are not finite any more.
        """
        self.recovery.tell(self.ledger.settle())
        scaler = self.stepper.scaler
        if scaler.is_enabled() and scaler.get_scale() < SMALLEST_SCALE:
            raise Lost(self.state.step, [NORM], f"at any scale of fp16, up to step {self.state.step:,}")

    def _log_if_due(self) -> None:
        """Means of the training numbers since the last entry, every n steps and before each validation."""
        plan, state = self.plan, self.state
        if not (state.step % plan.training.log_every_steps == 0 or self._validation_due()):
            return
        self._settle()
        if state.log_count == 0:
            return
        before = state.step - 1
        values = self.ledger.means()
        objective = self.stepper.objective
        values["bits_per_dim"] = float(
            objective.bits_per_dim(torch.tensor(values["loss.nll"]), torch.tensor(values["rate.nats"]))
        )
        if not objective.is_likelihood:
            values = {name: value for name, value in values.items() if name not in LIKELIHOOD_METRICS}
        values["beta"] = objective.beta(plan.progress(before))
        values["lr"] = self._lr(before)
        if (sigma := objective.sigma()) is not None:
            values["sigma"] = sigma
        steps, seconds = state.step - self._clock_step, time.monotonic() - self._clock
        speed = steps * plan.batch_size / seconds if seconds > 0 else 0.0
        if self.metrics:
            self.metrics.write("train", state.step, state.step / plan.steps_per_epoch, values)
        waited = self._waited / seconds if seconds > 0 else 0.0
        self.observer.losses_logged(LossesLogged(state.step, values, speed, self.runtime.memory(), waited))
        self._restart_clock()

    def _restart_clock(self) -> None:
        self._clock, self._clock_step, self._waited = time.monotonic(), self.state.step, 0.0

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
        result = self._validation()
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

    def _validation(self) -> ValidationResult:
        """Measure the averaged weights, in smaller pieces than training where memory asks for that.

        Raises:
            Lost: they give numbers that are not finite.
        """
        plan, state, runtime = self.plan, self.state, self.runtime
        usual = plan.micro_batch(runtime.world_size, self.stepper.micro_batches.pieces)
        micro_batches = MicroBatches(runtime, state.validation_pieces)
        result = validate(
            self.ema.model,
            self.stepper.objective,
            lambda pieces: validation_batches(
                self.validation,
                batch_size=math.ceil(usual / pieces),
                rank=runtime.rank,
                world_size=runtime.world_size,
            ),
            usual,
            micro_batches,
            plan.progress(state.step),
            plan.pca_psnr,
        )
        if micro_batches.pieces != state.validation_pieces:
            state.validation_pieces = micro_batches.pieces
            at_once = math.ceil(usual / micro_batches.pieces)
            self.observer.notice(f"out of memory while validating: from now on {at_once} images at once")
        bad = [name for name, value in result.values.items() if not math.isfinite(value)]
        if bad:
            raise Lost(state.step, bad, f"in the validation of step {state.step:,}")
        return result

    def _paint_if_due(self, epoch: int) -> None:
        every = self.plan.training.samples.every_epochs
        last = self.state.step >= self.plan.total_steps or self.state.stopped_early
        if self.painter is None or not (epoch <= 1 or epoch % every == 0 or last):
            return
        painter = self.painter
        try:
            name = f"epoch-{epoch:04d}"
            sheets = attempted(lambda: painter.paint(self.ema.model, self.state.step, name), self.runtime)
        except OSError as problem:  # pictures are no reason to end a run
            self.observer.notice(f"pictures cannot be written to {self.painter.folder} ({reason(problem)})")
            return
        if sheets is None:
            self.observer.notice("out of memory: no pictures are drawn; fewer need less (training.samples.count)")
            return
        for tag, path in sheets.items():
            self.observer.sheet_drawn(SheetDrawn(self.state.step, tag, path))

    # --- saving and stopping -------------------------------------------------------------------------

    def _save_if_due(self) -> None:
        """Save after a validation, when asked by a signal, and at least every few minutes.

        The flags are shared first, so that all ranks act at the same step.
        """
        self.saver.report()
        state = self.state
        wanted = self.signals.save or self.saver.time_is_up() or self.saver.is_keepsake(state.step)
        self.stopped_by, save = self.runtime.agree([self.signals.stop, int(wanted)])
        self.signals.save = False
        # by the step alone, so that a run goes back to the same place whenever it was interrupted
        regular = state.validated_step == state.step or state.step % self.plan.training.checkpoint.every_steps == 0
        if not (self.stopped_by or save or regular):
            return
        self._settle()
        if regular and state.skipped_in_a_row == 0:
            state.good_step = state.step
        self._save()

    def _save(self) -> None:
        if self.metrics:
            self.state.metrics_rows = self.metrics.rows
        self.saver.save(self.state, first=self.metrics.sync if self.metrics else None)

    def _over(self) -> bool:
        state = self.state
        return bool(self.stopped_by) or state.stopped_early or state.step >= self.plan.total_steps
