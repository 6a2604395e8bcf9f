"""The verb `fit`: start or continue a run, and bring it to its end."""

from __future__ import annotations

import time
from collections.abc import Sequence

from torch import Tensor

from unified_vae.core import schedule
from unified_vae.core.errors import CheckpointError
from unified_vae.data.batches import validation_batches
from unified_vae.data.open import DataSets
from unified_vae.experiment import resume_fix
from unified_vae.experiment.assemble import (
    Parts,
    Resolved,
    build_parts,
    calibrate,
    first_batch,
    open_images,
    resolve,
    self_test,
)
from unified_vae.experiment.continuation import differences, refuse_impossible, refuse_other_data
from unified_vae.experiment.diagnosis import Diagnosis
from unified_vae.experiment.environment import environment
from unified_vae.experiment.request import RunRequest
from unified_vae.experiment.run_folder import RunFolder, RunRecord, leaves, resolved_origins
from unified_vae.losses.build import Substitution
from unified_vae.losses.objective import Objective
from unified_vae.models.pretrained import save_pretrained
from unified_vae.training import checkpoint
from unified_vae.training.checkpoint import Checkpoint
from unified_vae.training.loop import Loop
from unified_vae.training.metrics_log import MetricsLog, TimingLog
from unified_vae.training.observers import Difference, Observer, Observers, RunFinished, RunStarted, TermRow
from unified_vae.training.runtime import Runtime, open_runtime
from unified_vae.training.saver import Saver
from unified_vae.training.sheets import SheetPainter
from unified_vae.training.signals import Signals, watching
from unified_vae.training.state import TrainState
from unified_vae.training.tensorboard import TensorBoardObserver, tensorboard_problem


def fit(request: RunRequest, observers: Sequence[Observer]) -> RunFinished:
    """Train until the end, patience, or a signal.

    The same request again continues where the last one stopped; a finished run says so.

    Raises:
        UserError: settings, data or environment that the user can mend.
    """
    config = request.run.config
    with open_runtime(config.device, config.training.precision) as runtime:
        observer = Observers(observers if runtime.is_main else [])
        folder = RunFolder(request.run_dir)
        _make_room(request, folder, runtime, observer)
        with watching() as signals:
            return _Fit(request, folder, runtime, observer, signals).run()


def _make_room(request: RunRequest, folder: RunFolder, runtime: Runtime, observer: Observer) -> None:
    """Move an earlier run aside where a fresh start was asked for; prove that the folder can be written."""
    if runtime.is_main:
        if not request.resume and folder.has_run():
            moved = folder.move_aside()
            observer.notice(f"the earlier run in {folder.root} was moved aside to {moved}")
        folder.prepare()
        checkpoint.sweep(folder.checkpoints)
    runtime.barrier()


class _Fit:
    """One start of a run, in the order in which things happen."""

    def __init__(
        self, request: RunRequest, folder: RunFolder, runtime: Runtime, observer: Observers, signals: Signals
    ) -> None:
        self.request = request
        self.folder = folder
        self.runtime = runtime
        self.observer = observer
        self.signals = signals
        self.begun = time.monotonic()

    def run(self) -> RunFinished:
        saved, record = self._earlier()
        found = differences(record, self.request.run.config) if record else []
        refuse_impossible(found, self.folder.root)
        data = open_images(self.request.run, self.runtime, self.observer)
        about_data = {"fingerprint": data.fingerprint, "description": data.description}
        if record and (difference := refuse_other_data(record, about_data, self.request.run.config.data.accept_change)):
            found.append(difference)
        resolved = resolve(self.request.run, data, self.runtime, self._known_loss(record, found))
        parts = build_parts(resolved.config, data, self.runtime)
        saver = self._saver(parts, resolved, about_data)
        state = saver.restore(saved) if saved else TrainState()
        if finished := self._already_finished(state, parts, found):
            return finished
        state.stopped_early = False  # a changed setting reopens a run that patience had ended
        self._say_what_was_found(data, resolved, record)
        images, noise = first_batch(parts, data, self.runtime)
        self_test(parts, images, noise)
        if saved is None:
            self._begin(parts, resolved, data, images, noise)
        if self.runtime.is_main:
            self._write_record(resolved, about_data)
        metrics = MetricsLog(self.folder.metrics, state.metrics_rows) if self.runtime.is_main else None
        self._add_file_observers(resolved)
        painter = self._painter(data, parts) if self.runtime.is_main else None
        loop = Loop(
            parts.plan, state, self.runtime, parts.stepper, parts.ema, data.train, data.validation, saver,
            metrics, painter, self.observer, self.signals,
        )  # fmt: skip
        self.observer.run_started(self._started(parts, resolved, data, state, found))
        loop.run()
        if metrics:
            metrics.close()
        return self._finish(loop, parts, resolved, data)

    # --- before the first step -----------------------------------------------------------------------

    def _earlier(self) -> tuple[Checkpoint | None, RunRecord | None]:
        """The checkpoint to continue from, and what its run said about itself; the same on every rank."""
        newest = None
        if self.runtime.is_main:
            newest = checkpoint.newest_good(self.folder.checkpoints, self.observer.notice)
        step = self.runtime.from_main(newest.step if newest else None)
        if step is None:
            return None, None
        saved = newest or checkpoint.load(self.folder.checkpoints, step)
        return saved, RunRecord.read(self.folder.config)

    @staticmethod
    def _known_loss(record: RunRecord | None, found: list[Difference]):  # type: ignore[no-untyped-def]
        """What the loss was resolved to when the run began, unless the user asks for another one now."""
        if record is None or any(difference.path.startswith("loss.") for difference in found):
            return None
        return record.resolved.loss, tuple(Substitution(*entry) for entry in record.substitutions)

    def _saver(self, parts: Parts, resolved: Resolved, about_data: dict[str, str]) -> Saver:
        about = {"config": resolved.config.model_dump(mode="json"), "data": about_data}
        return Saver(
            self.folder.checkpoints,
            resolved.config.training.checkpoint,
            parts.plan.steps_per_epoch,
            parts.stepper,
            parts.ema,
            self.runtime,
            self.observer,
            about,
        )

    def _already_finished(self, state: TrainState, parts: Parts, found: list[Difference]) -> RunFinished | None:
        done = state.step >= parts.plan.total_steps
        if not done and not (state.stopped_early and not found):
            return None
        if not self.folder.model.is_dir():  # it was interrupted between the last step and the export
            return None
        why = "finished" if done else "stopped early by patience"
        advice = (
            f"this run had already {why}: nothing to do.",
            f"To train longer, give more --epochs than {parts.plan.training.epochs}; to start afresh, --no-resume.",
        )
        return self._say_finished("already finished", state, 0.0, advice=advice)

    def _say_what_was_found(self, data: DataSets, resolved: Resolved, record: RunRecord | None) -> None:
        for note in data.notes:
            self.observer.notice(note)
        for entry in resolved.substitutions:
            since = " (as when this run began)" if record else ""
            self.observer.notice(
                f"loss.{entry.term} is replaced by loss.{entry.replacement}{since}: {entry.reason} "
                f"To make this an error: --set loss.{entry.term}.missing=strict"
            )
        if data.quarantined and self.runtime.is_main:
            lines = "".join(f"{entry.name}\t{entry.reason}\n" for entry in data.quarantined)
            self.folder.quarantine.write_text(lines, encoding="utf-8")
            self.observer.notice(f"{len(data.quarantined)} files could not be used: named in {self.folder.quarantine}")

    def _begin(self, parts: Parts, resolved: Resolved, data: DataSets, images: Tensor, noise: Tensor) -> None:
        """The state of step 0: a scale for the distortion, and for `resume_fix` the weights to be cured."""
        patient = self.request.fix_from
        if patient is None:
            calibrate(parts, images, noise, self.runtime)
            return
        resume_fix.take_over(patient, parts, self.observer)
        uncalibrated = {name: value.clone() for name, value in parts.objective.state_dict().items()}
        calibrate(parts, images, noise, self.runtime)
        before, result = resume_fix.examine(parts, data, self.runtime)
        revived = resume_fix.revive(parts, resolved.config, result.active)
        parts.objective.load_state_dict(uncalibrated)
        calibrate(parts, images, noise, self.runtime)
        self.observer.notice(resume_fix.advice(before, revived))
        if self.runtime.is_main:
            before.write(self.folder.before)

    def _write_record(self, resolved: Resolved, about_data: dict[str, str]) -> None:
        run = self.request.run
        RunRecord(
            run.config,
            resolved.config,
            resolved_origins(run, resolved.config, resolved.reasons),
            run.names,
            tuple((entry.term, entry.replacement, entry.reason) for entry in resolved.substitutions),
            about_data,
            environment(),
        ).write(self.folder.config)

    def _add_file_observers(self, resolved: Resolved) -> None:
        if not self.runtime.is_main:
            return
        self.observer.members.append(TimingLog(self.folder.timing))
        if problem := tensorboard_problem():
            self.observer.notice(problem)
            return
        plain = {
            path: value if isinstance(value, bool | int | float | str) else str(value)
            for path, value in leaves(resolved.config).items()
        }
        self.observer.members.append(TensorBoardObserver(self.folder.tensorboard, plain))

    def _painter(self, data: DataSets, parts: Parts) -> SheetPainter:
        count = min(parts.plan.training.samples.count, len(data.validation))
        first = next(iter(validation_batches(data.validation, batch_size=count, rank=0, world_size=1)))
        return SheetPainter(self.folder.samples, first, parts.plan.training.samples.count, parts.plan.seed)

    def _started(
        self, parts: Parts, resolved: Resolved, data: DataSets, state: TrainState, found: Sequence[Difference]
    ) -> RunStarted:
        plan = parts.plan
        count = sum(p.numel() for p in parts.model.parameters())
        progress = plan.progress(state.step)
        sigma = parts.objective.sigma()
        facts = [
            ("device", self.runtime.describe()),
            ("data", data.description),
            ("images", f"{len(data.train):,} to train, {len(data.validation):,} to validate"),
            ("model", f"{resolved.config.model.family}, {count / 1e6:.1f} M parameters, {data.channels} channel(s)"),
            ("steps", f"{plan.total_steps:,} of {plan.batch_size} images, {plan.steps_per_epoch:,} an epoch"),
            ("best weights", f"chosen by validation PSNR from step {plan.settled:,} on, when all warm-ups are over"),
            ("self-test", "every enabled term moves the weights it should"),
        ]
        if sigma is not None:
            facts.insert(-2, ("sigma", f"{float(sigma):.4f} of the pixel range: the decoder's noise, calibrated as it trains"))
        return RunStarted(
            self.folder.root, state.step, plan.total_steps, plan.steps_per_epoch, plan.batch_size,
            state.step > 0, facts, _term_rows(parts.objective, resolved, progress), tuple(found),
        )  # fmt: skip

    # --- after the last step -------------------------------------------------------------------------

    def _finish(self, loop: Loop, parts: Parts, resolved: Resolved, data: DataSets) -> RunFinished:
        state, seconds = loop.state, time.monotonic() - self.begun
        if self.signals.stop and state.step < parts.plan.total_steps and not state.stopped_early:
            import signal

            name = signal.Signals(self.signals.stop).name
            advice = (f"saved at step {state.step:,}. To continue: {self.request.command}",)
            return self._say_finished(
                "interrupted", state, seconds, signal=name, exit_code=128 + self.signals.stop, advice=advice
            )
        if self.runtime.is_main:
            self._export(parts, resolved, state)
        self.runtime.barrier()
        advice = (
            *self._before_and_after(parts, data),
            f"look at the pictures: {self.folder.samples}",
            f"use the model: {self.folder.model}",
            f"see the curves: uv run tensorboard --logdir {self.folder.root.parent}",
        )
        return self._say_finished("stopped early" if state.stopped_early else "finished", state, seconds, advice=advice)

    def _before_and_after(self, parts: Parts, data: DataSets) -> list[str]:
        """For `resume_fix`: what the cure did. Every rank takes part in the examination."""
        if self.request.fix_from is None:
            return []
        after, _ = resume_fix.examine(parts, data, self.runtime)
        before = Diagnosis.read(self.folder.before) if self.folder.before.exists() else None
        return resume_fix.comparison(before, after) if before else []

    def _export(self, parts: Parts, resolved: Resolved, state: TrainState) -> None:
        """The averaged weights of the best validation, as a folder that loads without this run."""
        weights, step = parts.ema.model.state_dict(), state.step
        if state.best_step is not None and state.best_step != state.step:
            try:
                weights = dict(checkpoint.load(self.folder.checkpoints, state.best_step).groups["ema"])
                step = state.best_step
            except CheckpointError as problem:
                self.observer.notice(f"the best weights cannot be read, so the last ones are exported: {problem}")
        about = {
            "run": {"names": dict(self.request.run.names), "step": step, "psnr": state.best_psnr},
            "loss": resolved.config.loss.model_dump(mode="json"),
            "pixels": "float in [0, 1], channels first",
        }
        save_pretrained(self.folder.model, resolved.config.model, weights, about)

    def _say_finished(
        self,
        outcome: str,
        state: TrainState,
        seconds: float,
        *,
        advice: Sequence[str],
        signal: str = "",
        exit_code: int = 0,
    ) -> RunFinished:
        values = {} if state.best_psnr is None else {"psnr": state.best_psnr}
        model = self.folder.model if self.folder.model.is_dir() else None
        event = RunFinished(
            outcome, self.folder.root, state.step, values, state.best_step, seconds, model, signal, exit_code, tuple(advice)
        )
        self.observer.run_finished(event)
        return event


def _term_rows(objective: Objective, resolved: Resolved, progress: float) -> list[TermRow]:
    """Beta and every weight, also the weights that are 0."""
    shares = {row.name: row.share for row in objective.rows(progress)}
    loss = resolved.config.loss
    notes = {entry.term: f"replaced by {entry.replacement}" for entry in resolved.substitutions}
    rows = []
    for name in type(loss).model_fields:
        term = getattr(loss, name)
        if not hasattr(term, "weight"):
            continue
        note = "beta, per nat of KL" if name == "kl" else notes.get(name, "")
        if (share := shares.get(name)) is not None:
            note = f"{share:.0%} of the distortion"
        rows.append(
            TermRow(f"loss.{name}", term.weight, schedule.describe(term.schedule), schedule.factor(term.schedule, progress), note)
        )
    return rows

