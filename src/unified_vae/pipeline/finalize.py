"""Finalizers: what is done after the last step; and how a run ends, with the command that continues it."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial, wraps

import numpy as np
import torch
from safetensors import SafetensorError

from unified_vae.analysis.density import FittedDensity, encode_training_images, fit_density
from unified_vae.analysis.diagnosis import HEALTHY, Diagnosis, History, PCALine
from unified_vae.analysis.recommendation import RunContext, recommend
from unified_vae.config.loss import PIXEL_TERMS, Geco, KLConfig
from unified_vae.config.upgrade import upgrade_part
from unified_vae.core.checkpoint_format import load
from unified_vae.core.distributions import MOST_CORRELATED, DiagonalGaussian
from unified_vae.core.errors import CheckpointError, EnvironmentProblem, reason, uv_run
from unified_vae.core.events import RunFinished
from unified_vae.core.files import write_text
from unified_vae.data.batches import gather, rank_slice
from unified_vae.inference.hub import FIGURES, write_card
from unified_vae.inference.image_grids import write_density_grid
from unified_vae.metrics.images import ReconstructionSums
from unified_vae.models.density import FILE_NAME as DENSITY_FILE
from unified_vae.models.density import NormalDensity
from unified_vae.models.pretrained import (
    CONFIG,
    DENSITY,
    WEIGHTS,
    load_pretrained,
    measure_latent_stats,
    save_density,
    save_pretrained,
    save_stats,
)
from unified_vae.models.vae import VAE
from unified_vae.pipeline.setup import TrainJob
from unified_vae.training.validation import reconstruct_batches

SAMPLES_FILE = "final-samples.png"
MAX_TRAINING_IMAGES = 1000  # of the diagnosis: the gap to validation shows with fewer, and the pass stays short
GECO_TOLERANCE = 0.5  # dB from the target that GECO is said to have missed
ROUNDING = 1e-5  # of beta, which is logged as a product of numbers in fp32
EXPORT_ERRORS = (OSError, SafetensorError, EnvironmentProblem)
"""Raised where the disk is full or the folder cannot be written."""


# --- finalizers ------------------------------------------------------------------------------------------


def _on_main(work: Callable[[TrainJob], list[str]]) -> Callable[[TrainJob], None]:
    """Make a finalizer of what the main process alone does; all ranks get its lines, or learn why it failed."""

    @wraps(work)
    def finalizer(job: TrainJob) -> None:
        lines: list[str] = []
        problem: str | None = None
        if job.runtime.is_main:
            try:
                lines = work(job)
            except EXPORT_ERRORS as error:
                problem = (
                    f"training is over, but the model could not be written to {job.folder.model} "
                    f"({reason(error).rstrip('.')}). {job.checkpointer.describe_last_checkpoint()} Free space or fix "
                    f"the permissions; this finishes the run: {job.request.command}"
                )
        lines, problem = job.runtime.broadcast_object((lines, problem))
        if problem is not None:
            raise EnvironmentProblem(problem)
        job.findings += lines

    return finalizer


@_on_main
def export_model(job: TrainJob) -> list[str]:
    """Write the averaged weights of the best validation as a folder that loads without this run.

    Raises:
        EnvironmentProblem: it could not be written; the sentence has the command that finishes the run.
    """
    state, folder, config = job.state, job.folder, job.config
    weights, step, psnr = job.train_step.ema.model.state_dict(), state.step, state.best_psnr
    if state.best_step is not None and state.best_step != state.step:
        try:
            best = job.checkpointer.best_unsaved(state.best_step) or load(folder.checkpoints, state.best_step)
            weights, step = job.train_step.model.upgrade_state_dict(best.tensors("ema")), best.step
        except CheckpointError as error:
            job.observer.notice(f"the best weights cannot be read, so the last ones are exported: {error}")
            psnr = None  # of the best, which these are not
    row = History.read(folder.metrics, until=step).last
    validation = {name: row[name] for name in FIGURES if row.get("step") == step and name in row}
    about = {
        "run": {
            "name": folder.root.absolute().name,
            "names": dict(job.request.run.names),
            "data": job.data.description,
            "license": config.license,
            "step": step,
            "psnr": psnr,
            "trained_steps": state.step,
            "validation": validation,
        },
        "loss": config.loss.model_dump(mode="json"),
        "pixels": "float in [0, 1], channels first",
        "background": config.data.background,
        "range": config.data.range,
    }
    save_pretrained(folder.model, config.model, weights, about)
    return []


@_on_main
def fit_latent_density(job: TrainJob) -> list[str]:
    """Fit what new images are sampled from, store it with the model with statistics and a card, and draw samples.

    The model is complete before this begins, and nothing here changes it. Where no density can be fitted, N(0, I) is
    kept, with a note.

    Raises:
        EnvironmentProblem: it could not be written; the sentence has the command that finishes the run.
    """
    started, folder, config, observer = time.monotonic(), job.folder, job.config, job.observer
    model = load_pretrained(folder.model, job.runtime.device)
    try:
        encoded: DiagonalGaussian | Exception = _encode_training_images(job, model, mirrored=False)
    except Exception as error:  # the model is good without a density
        encoded = error
    fitted = _fit_density(job, model, encoded)
    seconds = time.monotonic() - started
    model.use_density(fitted.density)
    grid = None
    try:
        samples = config.training.samples
        grid = write_density_grid(model, folder.samples / SAMPLES_FILE, samples.count, config.seed)
    except OSError as error:
        observer.notice(f"{folder.samples / SAMPLES_FILE} cannot be written ({reason(error)})")
    except torch.OutOfMemoryError:
        observer.notice("out of memory: skipping the images of new samples; reduce training.samples.count")
    _write_stats_and_card(job, model, encoded)
    metadata = {
        "asked": config.density.model_dump(),
        "log_likelihood": dict(fitted.nats),
        "images": fitted.images,
        "note": fitted.note,
    }
    save_density(folder.model, fitted.density, metadata)  # last: with it the export is complete
    lines = [_describe_density(fitted, seconds), fitted.note, grid and f"new samples: {grid.as_posix()}"]
    return [line for line in lines if line]


def _encode_training_images(job: TrainJob, model: VAE, mirrored: bool) -> DiagonalGaussian:
    config, subject = job.config, "mirrored training images" if mirrored else "training images"
    progress = partial(job.observer.phase, f"encoding {subject} for the latent density")
    return encode_training_images(model, job.data.train, config.density.max_images, config.seed, progress, mirrored)


def _fit_density(job: TrainJob, model: VAE, encoded: DiagonalGaussian | Exception) -> FittedDensity:
    """The density; N(0, I) with a note where none can be fitted, whatever the reason."""
    config = job.config
    if config.density.fit == "normal":
        return FittedDensity(NormalDensity(model.latents), {}, 0)
    try:
        if isinstance(encoded, Exception):
            raise encoded
        views = [encoded]
        # mirror images too, where the model was trained on them and images are few
        is_few = 2 * len(job.data.train) <= config.density.max_images and model.latents <= MOST_CORRELATED
        if config.data.augment.horizontal_flip and is_few:
            views.append(_encode_training_images(job, model, mirrored=True))
        joined = DiagonalGaussian(torch.cat([p.mean for p in views]), torch.cat([p.logvar for p in views]))
        return fit_density(joined, config.density, config.seed, job.observer.phase, len(views))
    except Exception as error:
        note = f"no latent density could be fitted ({_first_line(error)}), so new images are sampled from N(0, I)"
        return FittedDensity(NormalDensity(model.latents), {}, 0, note)


def _describe_density(fitted: FittedDensity, seconds: float) -> str:
    if fitted.density.kind == "normal":
        likeliest = f", the likeliest of {len(fitted.nats)} densities" if len(fitted.nats) > 1 else ""
        return f"new images are sampled from N(0, I){likeliest}"
    gain = fitted.nats[fitted.density.kind] - fitted.nats["normal"] if fitted.nats else 0.0
    better = f"; {gain:,.0f} nats per held-out image likelier than N(0, I)" if gain >= 0.5 else ""
    density = f"{fitted.density.describe()}, fitted to the latents of {fitted.images:,} images in {seconds:.0f} s"
    return f"new images are sampled from {density}{better}"


def _write_stats_and_card(job: TrainJob, model: VAE, encoded: DiagonalGaussian | Exception) -> None:
    """Statistics of the latents and the model card; a notice where they cannot be had, whatever the reason."""
    folder, stats = job.folder.model, None
    try:
        if isinstance(encoded, Exception):
            raise encoded
        stats = measure_latent_stats(encoded)
        save_stats(folder, stats)
    except Exception as error:
        job.observer.notice(f"the model has no statistics of its latents ({_first_line(error)})")
    try:
        write_card(folder, model, json.loads((folder / CONFIG).read_text(encoding="utf-8")), stats)
    except Exception as error:
        job.observer.notice(f"the model has no card ({_first_line(error)})")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


def diagnose_run(job: TrainJob) -> None:
    """Name the cause of blur or poor samples, in two lines: the last validation, the curves, some training images."""
    training_psnr = _psnr_on_training_images(job)
    if not job.runtime.is_main:
        return
    history, objective = History.read(job.folder.metrics), job.train_step.objective
    if "psnr" not in history.last:  # the file is gone, or cannot be written
        return
    shares = objective.shares(1.0)
    beta = job.preflight.effective_beta(objective.config.kl, history.beta)
    job.diagnosis = diagnosis = Diagnosis.from_metrics(
        history.last,
        job.train_step.model.latents,
        images=len(job.data.validation),
        training_psnr=training_psnr,
        pixel_share=sum(shares.get(name, 0.0) for name in PIXEL_TERMS),
        beta=history.beta,
        sigma=history.sigma,
        history=history,
        line=PCALine.from_json(job.preflight.to_json(beta)),
    )
    more = "more" if diagnosis.cause == HEALTHY else "evidence and what to do"
    job.findings += [
        f"diagnosis: {diagnosis.cause} ({diagnosis.summary()})",
        f"{more}: {uv_run('diagnose.py', job.folder.root.as_posix())}",
    ]


def _psnr_on_training_images(job: TrainJob) -> float:
    """dB of the averaged weights on as many training images as there are validation images, or MAX_TRAINING_IMAGES."""
    step, runtime, train = job.train_step, job.runtime, job.data.train
    model = step.ema.model
    count = min(len(train), len(job.data.validation), MAX_TRAINING_IMAGES)
    local = np.arange(count)[rank_slice(count, runtime.rank, runtime.world_size)]

    def local_sums(num_micro_batches: int) -> ReconstructionSums:
        sums = ReconstructionSums.empty(model.channels, model.image_size, runtime.device, runtime.accumulation_dtype)
        size = job.schedule.micro_batch_size(runtime.world_size, num_micro_batches)
        batches = (gather(train, local[start : start + size]) for start in range(0, len(local), size))
        for output, images in reconstruct_batches(model, batches, runtime):
            sums.add(output.reconstruction, images)
        return sums

    sums = step.micro_batches.run_with_oom_retry(job.schedule.batch_size // runtime.world_size, local_sums)
    runtime.all_reduce_sum_(sums.tensors())
    return sums.psnr()


def write_report(job: TrainJob) -> None:
    """Keep the diagnosis and write the run's report page. Whatever goes wrong is only a notice: the model is
    complete."""
    from unified_vae.report import page  # loads matplotlib

    if not job.runtime.is_main:
        return
    start, diagnosis = time.monotonic(), job.diagnosis
    try:
        if diagnosis is not None:
            context = RunContext(job.config, job.folder.root, job.request.run.names, len(job.data.train))
            recommendation = recommend(diagnosis, context)
            content = {
                "step": job.state.step,
                "cause": diagnosis.cause,
                "advice": recommendation.advice,
                "command": recommendation.command,
                "evidence": [evidence.to_json() for evidence in diagnosis.evidence()],
            }
            write_text(job.folder.closing, json.dumps(content, indent=2) + "\n")
        path = page.write_report(job.folder.root)
    except Exception as error:
        job.observer.notice(f"{job.folder.report} could not be written ({reason(error).rstrip('.')})")
        return
    job.findings.append(f"report: {path.as_posix()} (written in {time.monotonic() - start:.1f} s)")


def report_geco_warnings(job: TrainJob) -> None:
    """Say at the end of a run where GECO did not reach the error it was asked for."""
    job.findings += geco_warnings(job.config.loss.kl, History.read(job.folder.metrics))


def geco_warnings(kl: KLConfig, history: History) -> list[str]:
    """What to say at the end of a run that did not reach the error it was asked for; empty where all is well.

    GECO looks at training images, decoded from drawn latents: the loss that the metrics file has of them.
    """
    if not isinstance(kl.constraint, Geco) or not history.training or history.beta is None:
        return []
    geco, reached = kl.constraint, history.training[-1][1]
    if abs(reached - geco.psnr) < GECO_TOLERANCE:
        return []
    message = f"GECO did not converge: training images are at {reached:.1f} dB, the target is {geco.psnr:g}"
    if history.beta <= geco.min_beta * (1 + ROUNDING):
        return [f"{message}, and beta is at its floor. Use more latents, train longer, or lower the target"]
    if history.beta >= geco.max_beta * (1 - ROUNDING):
        return [f"{message}, and beta is at its ceiling: --set loss.kl.constraint.max_beta={10 * geco.max_beta:g}"]
    speed = f"--set loss.kl.constraint.speed={min(1.0, 4 * geco.speed):g}"
    return [f"{message}, and beta ({history.beta:.3g}) is still moving. Train longer, or let it move faster: {speed}"]


# --- how a run ends --------------------------------------------------------------------------------------


def is_over(job: TrainJob) -> bool:
    """Whether nothing is left to do. A run that was interrupted before its export still has that to do, and one that is
    asked for another latent density has that to fit."""
    state = job.state
    if state.step < job.schedule.total_steps and not state.stopped_early:
        return False
    folder, density = job.folder.model, job.request.run.config.density
    try:
        about = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return bool(
            about["run"]["trained_steps"] == state.step
            and upgrade_part("density", about[DENSITY]["asked"]) == density.model_dump()
            and about[DENSITY]["kind"] != "flow"  # no longer supported, so another one is fitted
            and all((folder / name).is_file() for name in (WEIGHTS, DENSITY_FILE))
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def interrupted(job: TrainJob, stop_reason: str) -> RunFinished:
    """A signal, or somebody else, stopped the run; everything is saved."""
    number = getattr(signal, stop_reason, None) if stop_reason.startswith("SIG") else None
    advice = (f"saved at step {job.state.step:,}. To resume: {job.request.command}",)
    return _finished(job, "interrupted", advice, stop_reason, exit_code=0 if number is None else 128 + int(number))


def already_finished(job: TrainJob) -> RunFinished:
    """The same command was given for a run that is over."""
    how = "stopped early" if job.state.stopped_early else "finished"
    advice = (
        f"this run has already {how}: nothing to do.",
        f"To train longer, give more --epochs than {job.config.training.epochs}; to start afresh, --no-resume.",
    )
    return _finished(job, "already finished", advice, seconds=0.0)


def finished(job: TrainJob) -> RunFinished:
    """The last step was taken, or early stopping ended the run."""
    unsaved, findings = job.checkpointer.problem, list(job.findings)
    if unsaved is not None:
        findings.append(
            f"{unsaved}. The model is complete; to train it longer, the run resumes at an earlier checkpoint"
        )
    advice = (
        *findings,
        f"sample images: {job.folder.samples}",
        f"curves: {uv_run('tensorboard', '--logdir', job.folder.tensorboard)}",
    )
    outcome = "stopped early" if job.state.stopped_early else "finished"
    return _finished(job, outcome, advice, exit_code=0 if unsaved is None else 3)


def _finished(
    job: TrainJob,
    outcome: str,
    advice: Sequence[str],
    stop_reason: str = "",
    exit_code: int = 0,
    seconds: float | None = None,
) -> RunFinished:
    """Tell the observers that the run is over, and how."""
    state, folder = job.state, job.folder
    event = RunFinished(
        outcome=outcome,
        run_dir=folder.root,
        step=state.step,
        values={} if state.best_psnr is None else {"psnr": state.best_psnr},
        best_step=state.best_step,
        seconds=time.monotonic() - job.started if seconds is None else seconds,
        model_dir=folder.model if folder.model.is_dir() else None,
        signal=stop_reason,
        exit_code=exit_code,
        advice=tuple(advice),
    )
    job.observer.run_finished(event)
    return event
