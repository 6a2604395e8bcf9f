"""Train a VAE: setup, initialize, train, finalize. The same request again continues where the last one stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

from unified_vae.core.events import Observer, Observers, RunFinished
from unified_vae.pipeline import finalize, initialize, resume_fix
from unified_vae.pipeline.errors import translate_runtime_errors
from unified_vae.pipeline.plan import RunRequest
from unified_vae.pipeline.run_header import announce
from unified_vae.pipeline.setup import StepBuilder, TrainJob, cache_images, setup, write_run_files
from unified_vae.training.control import handle_signals
from unified_vae.training.distributed import open_runtime
from unified_vae.training.run_lock import locked

Initializer = Callable[[TrainJob], None]
"""Changes the untrained weights of a new run, on every rank; runs before the first step, never on resume."""

Finalizer = Callable[[TrainJob], None]
"""Works on a trained run, on every rank; adds lines for the user to `job.findings`."""

INITIALIZERS: Sequence[Initializer] = (initialize.from_pca, initialize.calibrate_scale)
"""What a new run starts from."""

REPAIR: Sequence[Initializer] = (resume_fix.repair,)
"""What the run of `--mode resume_fix` starts from."""

FINALIZERS: Sequence[Finalizer] = (
    finalize.export_model,
    finalize.fit_latent_density,
    finalize.diagnose_run,
    resume_fix.compare_with_source,
    finalize.report_geco_warnings,
    finalize.write_report,
)
"""What is done after the last step."""


def fit(
    request: RunRequest,
    observers: Sequence[Observer] = (),
    *,
    build_step: StepBuilder | None = None,
    initializers: Sequence[Initializer] | None = None,
    finalizers: Sequence[Finalizer] = FINALIZERS,
    prepare: Callable[[TrainJob], None] | None = None,
) -> RunFinished:
    """Train until the end of the schedule, early stopping, or a signal.

    Args:
        observers: receive the events of the run, on the main process.
        build_step: makes another training step than the VAE's.
        initializers: None for the usual ones of the request.
        prepare: called with the job when it is set up, e.g. to keep its `control` or to add observers.

    Raises:
        UserError: settings, data or environment that the user can fix.
    """
    training = request.run.config.training
    with (
        translate_runtime_errors(),
        open_runtime(request.run.config.device, training.precision, training.deterministic) as runtime,
        locked(request.run_dir) if runtime.is_main else nullcontext(),
    ):
        job = setup(request, runtime, Observers(observers if runtime.is_main else []), build_step)
        if prepare:
            prepare(job)
        if finalize.is_over(job):
            return finalize.already_finished(job)
        announce(job)
        if job.resumed_from is None:
            for initializer in initializers or (REPAIR if request.fix_from else INITIALIZERS):
                initializer(job)
        else:
            job.cached_images, job.data_location = cache_images(job.data.train, job.config.data, job.runtime)
        write_run_files(job)
        trainer = initialize.make_trainer(job)
        # signals are caught only here: before, there is nothing to save, so they may end the process at once
        with handle_signals(job.control), job.checkpointer:
            stopped_by = trainer.train()
            job.checkpointer.finish(job.state, trainer.metrics_log.sync if trainer.metrics_log else None)
        if trainer.metrics_log:
            trainer.metrics_log.close()
        # a stop may also come in the last step: its validation is still to be done then
        complete = job.state.stopped_early or job.state.validated_step == job.state.step >= job.schedule.total_steps
        if stopped_by and not complete:
            job.checkpointer.raise_if_unsaved()
            return finalize.interrupted(job, stopped_by)
        for finalizer in finalizers:
            finalizer(job)
        return finalize.finished(job)
