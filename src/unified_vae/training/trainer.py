"""The training loop, counted in optimizer steps.

Order, augmentation and noise are pure functions of (seed, epoch, index, step), and everything else is in `TrainState`
and the checkpoint's tensors: a run that was killed anywhere ends in the same bits.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path

from torch import Tensor
from torch.amp import GradScaler

from unified_vae.config.training import TrainingConfig
from unified_vae.core.errors import reason
from unified_vae.core.events import ImagesWritten, LossesLogged, Observer, StepDone, Validated
from unified_vae.data.batches import TrainBatch, train_batches
from unified_vae.data.dataset import PackedSplit
from unified_vae.optim.lr import lr_factor
from unified_vae.training.anomalies import AnomalyHandler, MetricAccumulator, NonFiniteError
from unified_vae.training.checkpointer import Checkpointer, JsonState
from unified_vae.training.control import TrainControl
from unified_vae.training.distributed import Runtime
from unified_vae.training.loggers import MetricsLog
from unified_vae.training.memory import try_or_none_on_oom
from unified_vae.training.state import TrainSchedule, TrainState
from unified_vae.training.train_step import GRADIENT_NORM, TrainStep, scale_learning_rates
from unified_vae.training.validation import ValidationResult

MIN_LOSS_SCALE = 1e-3  # of fp16 gradients: so small only when every step overflows
MAX_PENDING_STEPS = 100  # steps whose metrics may wait on the device

Validator = Callable[[TrainState], ValidationResult]
"""Evaluates the weights on the validation set, the same on all ranks. Its values have `psnr`, in dB."""

ImageWriter = Callable[[int, str], Mapping[str, Path]]
"""(step, start of the file names) -> tag -> image file."""


class Trainer:
    """Runs a `TrainStep` from where `state` stands to the end of the schedule, or until `control` stops it.

    Attributes:
        stopped_by: the reason that all ranks agreed to stop for; empty where the run came to its end.
    """

    def __init__(
        self,
        train_step: TrainStep,
        schedule: TrainSchedule,
        training: TrainingConfig,
        train: PackedSplit,
        state: TrainState,
        checkpointer: Checkpointer,
        *,
        runtime: Runtime,
        observer: Observer,
        control: TrainControl | None = None,
        validator: Validator | None = None,
        image_writer: ImageWriter | None = None,
        metrics_log: MetricsLog | None = None,
        cached_images: Tensor | None = None,
    ) -> None:
        """Args:
        train: the training images.
        validator: None for no validation: then the last weights count as the best.
        image_writer: None on ranks other than the main one.
        metrics_log: None on ranks other than the main one.
        cached_images: the training images on the device, where they fit.
        """
        self.train_step = train_step
        self.schedule = schedule
        self.training = training.resolve(schedule.total_steps, schedule.steps_per_epoch)
        self.train_split = train
        self.state = state
        self.checkpointer = checkpointer
        self.runtime = runtime
        self.observer = observer
        self.control = control or TrainControl()
        self.validator = validator
        self.image_writer = image_writer
        self.metrics_log = metrics_log
        self.cached_images = cached_images
        self.stopped_by = ""
        entries = (entry.holder for entry in train_step.stateful.values() if isinstance(entry, JsonState))
        self.scalers = [entry for entry in entries if isinstance(entry, GradScaler)]
        scaled = any(scaler.is_enabled() for scaler in self.scalers)
        self.accumulator = MetricAccumulator(train_step.names, state, training.recovery, scaled)
        self.anomalies = AnomalyHandler(
            training, schedule, train, state, train_step, checkpointer, metrics_log, observer, runtime
        )
        self._clock = 0.0
        self._clock_step = 0
        self._waited = 0.0  # seconds for images since the clock was set

    def train(self) -> str:
        """Take the remaining steps, some of them again after NaN/Inf; returns `stopped_by`.

        Raises:
            Diverged: rolling back did not help.
            EnvironmentProblem: no memory, no disk, or no images any more.
        """
        self.checkpointer.prepare()
        if self.state.step == 0:
            self.save()  # what a run that fails before its first validation rolls back to
        while True:
            try:
                self._run()
                return self.stopped_by
            except NonFiniteError as raised:
                error = raised
            self.accumulator.reset()
            self.anomalies.rollback(error)
            self.save()

    def _run(self) -> None:
        self._reset_clock()
        if self.validation_due():  # of the start, or the checkpoint was saved just before its validation
            self.validate_if_due()
            self.checkpoint_if_due()
        if self.is_over():
            return
        with contextlib.closing(self._batches()) as batches:
            for batch in batches:
                state = self.state
                progress = self.schedule.progress(state.step + 1)
                factor = lr_factor(self.training.lr_schedule, progress, state.plateau.reductions)
                scale_learning_rates(self.train_step.optimizers.values(), factor, state.lr_scale)
                metrics = self.train_step(batch, state.step)
                state.step += 1
                self.count(metrics)
                self.log_if_due()
                self.validate_if_due()
                self.checkpoint_if_due()
                if self.is_over():
                    break

    def is_over(self) -> bool:
        """Whether no further step is to be taken."""
        return bool(self.stopped_by) or self.state.stopped_early or self.state.step >= self.schedule.total_steps

    # --- batches -------------------------------------------------------------------------------------

    def _batches(self) -> Generator[TrainBatch, None, None]:
        """The remaining batches; the time that they are waited for is counted."""
        batches = train_batches(
            self.train_split,
            seed=self.schedule.seed,
            start_step=self.state.step,
            end_step=self.schedule.total_steps,
            batch_size=self.schedule.batch_size,
            rank=self.runtime.rank,
            world_size=self.runtime.world_size,
            pin_memory=self.runtime.device.type == "cuda",
            cached_images=self.cached_images,
        )
        with contextlib.closing(batches):
            while True:
                begun = time.monotonic()
                batch = next(batches, None)
                if batch is None:
                    return
                self._waited += time.monotonic() - begun
                yield batch

    # --- metrics -------------------------------------------------------------------------------------

    def count(self, metrics: Tensor) -> None:
        """Record the metrics of the step that was taken, and report what happened in it.

        Raises:
            NonFiniteError: too many steps in a row were skipped.
        """
        self.accumulator.add(metrics)
        if not self.runtime.is_async or len(self.accumulator) >= MAX_PENDING_STEPS:
            self.flush()
        state, schedule, count = self.state, self.schedule, self.train_step.micro_batches.count
        if count != (state.num_micro_batches or self.training.gradient_accumulation_steps):
            state.num_micro_batches = count
            self.observer.notice(
                f"out of memory: from step {state.step:,} on, micro-batches of at most "
                f"{schedule.micro_batch_size(self.runtime.world_size, count)} images, {count} per batch on each "
                "device. Batches, order and noise stay the same, and the result too, but for rounding. A resumed run "
                "keeps this"
            )
        self.observer.step_done(
            StepDone(state.step, schedule.total_steps, schedule.steps_per_epoch, schedule.batch_size)
        )

    def flush(self) -> None:
        """Read the steps' metrics, which waits for the device, and report skipped steps and spikes."""
        self.anomalies.report(self.accumulator.flush())
        if any(scaler.is_enabled() and scaler.get_scale() < MIN_LOSS_SCALE for scaler in self.scalers):
            where = f"at any scale of fp16, up to step {self.state.step:,}"
            raise NonFiniteError(self.state.step, [GRADIENT_NORM], where)

    def log_if_due(self) -> None:
        """Log means of the training metrics since the last entry, every n steps and before each validation."""
        state, schedule = self.state, self.schedule
        if not (state.step % self.training.log_every_steps == 0 or self.validation_due()):
            return
        self.flush()
        if state.log_count == 0:
            return
        values = self.train_step.metrics_to_log(self.accumulator.means(), state.step - 1)
        values["lr"] = next(iter(self.train_step.optimizers.values())).param_groups[0]["lr"]
        steps, seconds = state.step - self._clock_step, time.monotonic() - self._clock
        speed = steps * schedule.batch_size / seconds if seconds > 0 else 0.0
        waited = self._waited / seconds if seconds > 0 else 0.0
        if self.metrics_log:
            self.metrics_log.write("train", state.step, state.step / schedule.steps_per_epoch, values)
        self.observer.losses_logged(LossesLogged(state.step, values, speed, self.runtime.memory(), waited))
        self._reset_clock()

    def _reset_clock(self) -> None:
        self._clock, self._clock_step, self._waited = time.monotonic(), self.state.step, 0.0

    # --- validation ----------------------------------------------------------------------------------

    def validation_due(self) -> bool:
        """Whether the weights of this step are to be validated, and were not yet."""
        state, schedule = self.state, self.schedule
        if self.validator is None or state.validated_step == state.step:
            return False
        epochs, rest = divmod(state.step, schedule.steps_per_epoch)
        assert self.training.validate_every_epochs != "auto", "resolved above"
        at_epoch = rest == 0 and epochs % self.training.validate_every_epochs == 0
        return at_epoch or state.step >= schedule.total_steps

    def validate_if_due(self) -> None:
        """Validate, select the best weights, count early stopping, draw sample images.

        Raises:
            NonFiniteError: the weights give NaN/Inf.
        """
        stopping = self.control.stop_reason and self.runtime.world_size == 1
        if not self.validation_due() or stopping:  # then the resumed run validates first
            return
        assert self.validator is not None
        state, schedule, training = self.state, self.schedule, self.training
        started = time.monotonic()
        result = self.validator(state)
        if bad := [name for name, value in result.values.items() if not math.isfinite(value)]:
            raise NonFiniteError(state.step, bad, f"in the validation of step {state.step:,}")
        psnr, best = result.values["psnr"], False
        selecting = state.step >= max(schedule.selection_start_step, 1)
        if state.step == 0 and schedule.select_start:
            state.best_psnr, state.best_step, best = psnr, 0, True
        elif selecting:
            best = state.update_best(psnr, training.early_stopping.min_delta)
            state.plateau.validated(training.lr_schedule, psnr)
        patience = training.early_stopping.patience
        out_of_patience = patience is not None and state.num_bad_epochs >= patience
        state.stopped_early = out_of_patience and state.step < schedule.total_steps
        state.validated_step, state.mean_image_psnr = state.step, result.values.get("psnr.mean_image")
        if self.metrics_log:
            self.metrics_log.write("validation", state.step, state.step / schedule.steps_per_epoch, result.values)
        epoch = round(state.step / schedule.steps_per_epoch)
        self.observer.validated(
            Validated(
                step=state.step,
                epoch=epoch,
                values=result.values,
                kl_per_unit=result.kl_per_unit,
                best=best,
                selecting=selecting,
                num_bad_epochs=state.num_bad_epochs,
                patience=patience,
                seconds=time.monotonic() - started,
            )
        )
        self._write_images_if_due(epoch)
        self._reset_clock()

    def _write_images_if_due(self, epoch: int) -> None:
        last = self.state.step >= self.schedule.total_steps or self.state.stopped_early
        writer, step = self.image_writer, self.state.step
        every = self.training.samples.every_epochs
        assert every != "auto", "resolved above"
        if writer is None or not (epoch <= 1 or epoch % every == 0 or last):
            return
        try:
            files = try_or_none_on_oom(lambda: writer(step, f"epoch-{epoch:04d}"), self.runtime)
        except OSError as error:  # images are no reason to end a run
            self.observer.notice(f"sample images are skipped: {error.filename} cannot be written ({reason(error)})")
            return
        if files is None:
            self.observer.notice("out of memory: skipping sample images; reduce training.samples.count")
            return
        for tag, path in files.items():
            self.observer.images_written(ImagesWritten(step, tag, path))

    # --- checkpoints ---------------------------------------------------------------------------------

    def checkpoint_if_due(self) -> None:
        """Save after a validation, when asked to, and at least every few minutes.

        The flags are shared first, so that all ranks act at the same step.
        """
        self.checkpointer.report()
        state, checkpointer = self.state, self.checkpointer
        due = self.control.save_requested or checkpointer.time_is_up or checkpointer.is_permanent(state.step)
        stop, save = self.runtime.all_reduce_max([int(bool(self.control.stop_reason)), int(due)])
        if stop:
            self.stopped_by = next(filter(None, self.runtime.gather_objects(self.control.stop_reason)))
        self.control.save_requested = False
        # by the step alone, so that a run rolls back to the same checkpoint wherever it was interrupted
        regular = state.validated_step == state.step or state.step % self.training.checkpoint.every_steps == 0
        last = self.validator is None and state.step >= self.schedule.total_steps
        if not (stop or save or regular or last):
            return
        self.flush()
        if regular and state.consecutive_skips == 0:
            state.good_step = state.step
        self.save()

    def save(self) -> None:
        """Save a checkpoint of this step, in the background."""
        if self.metrics_log:
            self.state.metrics_rows = self.metrics_log.rows
        self.checkpointer.save(self.state, before_write=self.metrics_log.sync if self.metrics_log else None)
