"""The verb `fit`: start or continue a run, and bring it to its end."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
from torch import Tensor

from unified_vae.core.counter import key, permutation
from unified_vae.core.durable import write_text
from unified_vae.core.errors import CheckpointError, EnvironmentProblem
from unified_vae.core.principal_components import PrincipalComponents
from unified_vae.data.batches import gather, validation_batches
from unified_vae.data.dataset import DataSets
from unified_vae.experiment.diagnosis import preflight
from unified_vae.experiment.diagnosis.cause import Diagnosis
from unified_vae.experiment.diagnosis.history import History
from unified_vae.experiment.diagnosis.preflight import Preflight, start_at_pca
from unified_vae.experiment.diagnosis.remedy import Situation
from unified_vae.experiment.environment import environment
from unified_vae.experiment.fitting import closing, ending, resume_fix
from unified_vae.experiment.fitting.assemble import (
    Parts,
    Resolved,
    build_parts,
    calibrate,
    first_batch,
    first_point,
    open_images,
    resolve,
    self_test,
)
from unified_vae.experiment.fitting.batch_size import with_batch_size
from unified_vae.experiment.fitting.constraint_facts import missed
from unified_vae.experiment.fitting.continuation import (
    adopt_changes,
    differences,
    refuse_impossible,
    refuse_other_counts,
    refuse_other_data,
)
from unified_vae.experiment.fitting.failures import failures_told
from unified_vae.experiment.fitting.opening import opening
from unified_vae.experiment.fitting.residence import place
from unified_vae.experiment.fitting.sampling import add_density
from unified_vae.experiment.fitting.tuning import tuned
from unified_vae.experiment.request import RunRequest
from unified_vae.experiment.run_folder import RunFolder, RunRecord, leaves, resolved_origins
from unified_vae.losses.build import Substitution
from unified_vae.training import checkpoint, checkpoint_ring
from unified_vae.training.checkpoint import Checkpoint
from unified_vae.training.foreign import refuse_foreign
from unified_vae.training.loop import Loop
from unified_vae.training.metrics_log import MetricsLog, TimingLog
from unified_vae.training.non_finite import SkippedLog
from unified_vae.training.observers import Difference, Observer, Observers, RunFinished
from unified_vae.training.run_lock import locked
from unified_vae.training.runtime import Runtime, open_runtime
from unified_vae.training.saver import Saver
from unified_vae.training.sheets import LATENTS_FROM, SheetPainter
from unified_vae.training.signals import watching
from unified_vae.training.state import TrainState
from unified_vae.training.tensorboard import TensorBoardObserver, tensorboard_problem


def fit(request: RunRequest, observers: Sequence[Observer]) -> RunFinished:
    """Train until the end, patience, or a signal.

    The same request again continues where the last one stopped; a finished run says so.

    Raises:
        UserError: settings, data or environment that the user can mend.
    """
    training = request.run.config.training
    with (
        failures_told(),
        open_runtime(request.run.config.device, training.precision, training.deterministic) as runtime,
    ):
        observer = Observers(observers if runtime.is_main else [])
        with locked(request.run_dir) if runtime.is_main else nullcontext():
            folder = RunFolder(request.run_dir)
            _make_room(request, folder, runtime, observer)
            return _Fit(request, folder, runtime, observer).run()


def _make_room(request: RunRequest, folder: RunFolder, runtime: Runtime, observer: Observer) -> None:
    """Move an earlier run aside where a fresh start was asked for; prove that the folder can be written."""
    if runtime.is_main:
        if not request.resume and folder.has_run():
            moved = folder.move_aside()
            observer.notice(f"the earlier run in {folder.root} was moved aside to {moved}")
        if request.resume and not checkpoint_ring.saved_steps(folder.checkpoints):
            refuse_foreign(folder.root, folder.checkpoints)
        folder.prepare()
        folder.sweep()
        checkpoint_ring.sweep(folder.checkpoints)
    runtime.barrier()


class _Fit:
    """One start of a run, in the order in which things happen."""

    def __init__(self, request: RunRequest, folder: RunFolder, runtime: Runtime, observer: Observers) -> None:
        self.request = request
        self.folder = folder
        self.runtime = runtime
        self.observer = observer
        self.begun = time.monotonic()

    def run(self) -> RunFinished:
        saved, record = self._earlier()
        found = differences(record, self.request.run.config) if record else []
        if saved is not None and saved.step == 0 and found:  # nothing was trained yet that could be continued
            saved, record, found = None, None, []
        if record:
            now = self.request.run
            refuse_impossible(found, record, now.names, self.folder.root, now.origins)
        if saved is None and self.request.fix_from:
            resume_fix.refuse_without_checkpoint(self.request.fix_from)
        data = open_images(self.request.run, self.runtime, self.observer)
        about_data = {"fingerprint": data.fingerprint, "description": data.description}
        if record and (difference := self._other_data(record, data, about_data)):
            found.append(difference)
        known = [Substitution(*entry) for entry in record.substitutions] if record else None
        flight, basis = self._preflight(data, record)
        resolved = resolve(self.request.run, data, self.runtime, known, flight)
        begun_with = record.resolved.training.images_a_step if record else None
        # before anything is measured, so that it is measured with the memory they leave; a resumed run measures none
        placed = None if record else place(data.train, resolved.config.data, self.runtime)
        resolved = with_batch_size(resolved, data, self.runtime, begun_with)
        resolved = tuned(resolved, data, self.runtime, record.resolved.training if record else None, self.observer)
        self.runtime = self.runtime.laid_out(resolved.config.training.memory_format)
        parts = build_parts(resolved.config, data, self.runtime, flight.psnr_pca)
        if record:
            refuse_other_counts(record, resolved.config, parts.plan.steps_per_epoch, self.folder.root)
        new_record = self._record(resolved, parts, about_data, flight)
        saver = self._saver(parts, new_record)
        state = saver.restore(saved) if saved else TrainState()
        adopt_changes(state, [difference.path for difference in found])
        parts.stepper.micro_batches.pieces = state.pieces or resolved.config.training.gradient_accumulation_steps
        if state.step < parts.plan.settled == parts.plan.total_steps:
            state.forget_best()  # nothing is settled before the end, and the end has moved
        if self._is_over(state, parts):
            return self._say(ending.already_finished(self.request, state, parts.plan.training.epochs))
        self._say_what_was_found(data, resolved, record)
        beta = flight.planned_beta(resolved.config.loss.kl)
        strict, asked = resolved.config.preflight == "strict", self.request.run.config.loss.kl.reduction
        in_nats = "" if asked == "nats" else " with --set loss.kl.reduction=nats"
        if warning := preflight.refuse_or_warn(flight, beta, strict, in_nats):
            self.observer.notice(warning)
        images, noise = first_batch(parts, data, self.runtime)
        self_test(parts, images, noise)
        if basis is not None:
            self._begin(parts, resolved, data, images, noise, flight, basis)
        if self.runtime.is_main:
            new_record.write(self.folder.config)
            data.inventory.write(self.folder.root)
            write_text(self.folder.preflight, json.dumps(flight.to_json(beta), indent=2) + "\n")
        self._add_file_observers(resolved, state)
        resident, where = placed or place(data.train, resolved.config.data, self.runtime)
        point = first_point(parts, images, noise, self.runtime, parts.plan.progress(state.step))
        self.observer.run_started(
            opening(self.folder.root, self.runtime, parts, resolved, data, state, found, flight, point, where)
        )
        stopped_by = self._train(parts, data, saver, state, resident)
        return self._finish(parts, resolved, data, state, stopped_by, flight, saver)

    def _train(self, parts: Parts, data: DataSets, saver: Saver, state: TrainState, resident: Tensor | None) -> int:
        """Run the loop; returns the number of the signal that stopped it, 0 for none.

        Only here are signals caught: before, there is nothing to save, so they may end the process at once.
        """
        main, notice = self.runtime.is_main, self.observer.notice
        metrics = MetricsLog(self.folder.metrics, state.metrics_rows, notice) if main else None
        painter = self._painter(data, parts) if main else None
        with watching() as signals, saver:
            loop = Loop(
                plan=parts.plan,
                state=state,
                runtime=self.runtime,
                stepper=parts.stepper,
                ema=parts.ema,
                train=data.train,
                validation=data.validation,
                saver=saver,
                metrics=metrics,
                painter=painter,
                observer=self.observer,
                signals=signals,
                resident=resident,
            )
            loop.run()
            saver.finish(state, metrics.sync if metrics else None)
        if metrics:
            metrics.close()
        return loop.stopped_by

    # --- before the first step -----------------------------------------------------------------------

    def _earlier(self) -> tuple[Checkpoint | None, RunRecord | None]:
        """The checkpoint to continue from, and what its run said about itself; the same on every rank."""
        newest = None
        if self.runtime.is_main:
            newest = checkpoint_ring.newest_good(self.folder.checkpoints, self.observer.notice)
        step = self.runtime.from_main(newest.step if newest else None)
        if step is None:
            return None, None
        saved = newest or checkpoint.load(self.folder.checkpoints, step)
        return saved, RunRecord.from_json(saved.part("record"), self.folder.root)

    def _other_data(self, record: RunRecord, data: DataSets, about_data: dict[str, str]) -> Difference | None:
        changes = data.inventory.changes_since(self.folder.root, record.data["fingerprint"])
        return refuse_other_data(record, about_data, self.request.run.config.data.allow_changed_data, changes)

    def _preflight(self, data: DataSets, record: RunRecord | None) -> tuple[Preflight, PrincipalComponents | None]:
        """The spectrum of the images: looked at before the first step, and remembered after that.

        The main process looks and tells the others, so that all ranks start from the same components.
        """
        if record is not None:
            return Preflight.from_json(record.preflight), None
        self.observer.phase("looking at the spectrum of the training images", 0, None)
        config = self.request.run.config
        flown = preflight.fly(config, data, self.runtime.device) if self.runtime.is_main else None
        shared = self.runtime.from_main(flown)
        assert shared is not None
        return shared

    def _record(self, resolved: Resolved, parts: Parts, about_data: dict[str, str], flight: Preflight) -> RunRecord:
        run = self.request.run
        return RunRecord(
            run.config,
            resolved.config,
            resolved_origins(run, resolved.config, resolved.reasons),
            run.names,
            tuple((entry.term, entry.replacement, entry.reason) for entry in resolved.substitutions),
            about_data,
            parts.plan.steps_per_epoch,
            environment(),
            flight.to_json(flight.planned_beta(resolved.config.loss.kl)),
        )

    def _saver(self, parts: Parts, record: RunRecord) -> Saver:
        return Saver(
            self.folder.checkpoints,
            record.resolved.training.checkpoint,
            parts.plan.steps_per_epoch,
            parts.stepper,
            parts.ema,
            self.runtime,
            self.observer,
            {"record": record.to_json()},
        )

    def _is_over(self, state: TrainState, parts: Parts) -> bool:
        """Whether nothing is left to do. A run that was interrupted before its export still has that to do, and one
        that is asked for another latent density has that to fit.
        """
        trained = state.step >= parts.plan.total_steps or state.stopped_early
        return trained and ending.is_exported(self.folder, state, self.request.run.config.density)

    def _say_what_was_found(self, data: DataSets, resolved: Resolved, record: RunRecord | None) -> None:
        for note in data.notes:
            self.observer.notice(note)
        for entry in resolved.substitutions:
            since = " (as when this run began)" if record else ""
            self.observer.notice(
                f"loss.{entry.term} is replaced by loss.{entry.replacement}{since}: {entry.reason.rstrip('.')}. "
                f"To make this an error: --set loss.{entry.term}.missing=strict"
            )
        asked = self.request.run.config.loss.kl
        if asked.reduction != "nats":
            beta = resolved.config.loss.kl.weight
            self.observer.notice(
                f"kl.weight {asked.weight:g} with reduction {asked.reduction} is beta {beta:.4g} for these images"
            )
        if data.quarantined and self.runtime.is_main:
            lines = "".join(entry.format_line("\t") + "\n" for entry in data.quarantined)
            write_text(self.folder.quarantine, lines)
            self.observer.notice(f"files that cannot be used are named, with reasons, in {self.folder.quarantine}")

    def _begin(
        self,
        parts: Parts,
        resolved: Resolved,
        data: DataSets,
        images: Tensor,
        noise: Tensor,
        flight: Preflight,
        basis: PrincipalComponents,
    ) -> None:
        """The state of step 0: weights at PCA and a scale for the distortion; for `resume_fix` those to be cured."""
        patient = self.request.fix_from
        if patient is None:
            start_at_pca([parts.model, parts.ema.model], basis, flight, resolved.config)
            calibrate(parts, images, noise, self.runtime)
            return
        resume_fix.take_over(patient, parts, self.observer, self.runtime)
        uncalibrated = {name: value.clone() for name, value in parts.objective.state_dict().items()}
        calibrate(parts, images, noise, self.runtime)
        before, result = resume_fix.examine(parts, data, self.runtime, flight)
        revived = resume_fix.revive(parts, resolved.config, data, result.active, basis, flight)
        parts.objective.load_state_dict(uncalibrated)
        calibrate(parts, images, noise, self.runtime)
        self.observer.notice(resume_fix.advice(before, revived))
        if self.runtime.is_main:
            before.write(self.folder.before)

    def _add_file_observers(self, resolved: Resolved, state: TrainState) -> None:
        if not self.runtime.is_main:
            return
        self.observer.members += [TimingLog(self.folder.timing), SkippedLog(self.folder.skipped, state.skipped)]
        if problem := tensorboard_problem(self.folder.tensorboard):
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
        some = np.sort(permutation(key(parts.plan.seed, "sheets"), len(data.train))[:LATENTS_FROM])
        return SheetPainter(
            self.folder.samples, first, parts.plan.training.samples.count, parts.plan.seed, gather(data.train, some)
        )

    # --- after the last step -------------------------------------------------------------------------

    def _finish(
        self,
        parts: Parts,
        resolved: Resolved,
        data: DataSets,
        state: TrainState,
        stopped_by: int,
        flight: Preflight,
        saver: Saver,
    ) -> RunFinished:
        whole = state.stopped_early or state.validated_step == state.step >= parts.plan.total_steps
        if stopped_by and not whole:  # also where a stop came in the last step: its validation is still to be done
            saver.refuse_unsaved()
            return self._say(ending.interrupted(self.request, state, stopped_by, self._seconds()))
        sampled = self._export(parts, resolved, data, state, saver)
        found = closing.diagnosed(parts, data, self.runtime, self.folder, flight)
        findings = [*closing.lines(found, self.folder), *self._before_and_after(parts, data, flight), *sampled]
        findings += missed(resolved.config.loss.kl, History.read(self.folder.metrics))
        if self.runtime.is_main:
            place = Situation(resolved.config, self.folder.root, self.request.run.names, len(data.train))
            findings += closing.write_page(self.folder, found, place, state.step, self.observer.notice)
        return self._say(ending.finished(self.request, state, self._seconds(), findings, saver.problem))

    def _seconds(self) -> float:
        """Of all that this start did until now, what follows the training included."""
        return time.monotonic() - self.begun

    def _export(
        self, parts: Parts, resolved: Resolved, data: DataSets, state: TrainState, saver: Saver
    ) -> Sequence[str]:
        """Write the model and its latent density; what to say of them. The main process works, all learn how it ended.

        Raises:
            EnvironmentProblem: they could not be written; the sentence has the command that finishes the run.
        """
        sampled, problem = [], None
        if self.runtime.is_main:
            try:
                held = saver.best_unsaved(state.best_step)
                names = dict(self.request.run.names)
                ending.export(self.folder, parts, resolved, state, names, data.description, self.observer, held)
                sampled = add_density(self.folder, resolved.config, data.train, self.runtime.device, self.observer)
            except ending.EXPORT_ERRORS as error:
                problem = ending.export_failed(self.folder, error, saver.what_is_left(), self.request.command)
        sampled, problem = self.runtime.from_main((sampled, problem))
        if problem is not None:
            raise EnvironmentProblem(problem)
        return sampled

    def _before_and_after(self, parts: Parts, data: DataSets, flight: Preflight) -> list[str]:
        """For `resume_fix`: what the cure did. Every rank takes part in the examination."""
        if self.request.fix_from is None:
            return []
        after, _ = resume_fix.examine(parts, data, self.runtime, flight)
        try:
            before = Diagnosis.read(self.folder.before) if self.folder.before.exists() else None
        except CheckpointError as problem:  # the run itself is whole
            self.observer.notice(str(problem))
            return []
        return resume_fix.comparison(before, after) if before else []

    def _say(self, event: RunFinished) -> RunFinished:
        self.observer.run_finished(event)
        return event
