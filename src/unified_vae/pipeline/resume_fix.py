"""Repair for blur and posterior collapse: what `--mode resume_fix` starts from, instead of random weights or PCA.

It takes the averaged weights of an existing run, diagnoses them, gives latent units that carry nothing fresh weights,
and leaves behind everything else that held the model down: the optimizer's moments, the distortion's scale, the place
in the schedules. The presets then warm beta up again from 0, with more weight on sharpness, at the run's own rate.
The source run is only read.
"""

from __future__ import annotations

import torch

from unified_vae.analysis.diagnosis import Diagnosis, PCALine
from unified_vae.analysis.preflight import init_from_pca
from unified_vae.core.checkpoint_format import load_weights
from unified_vae.core.errors import CheckpointError
from unified_vae.core.rng import key
from unified_vae.core.run_dir import RunFolder
from unified_vae.models.build import build_model
from unified_vae.pipeline import resume
from unified_vae.pipeline.build import calibrate
from unified_vae.pipeline.setup import TrainJob
from unified_vae.training.validation import ValidationResult, validate


def repair(job: TrainJob) -> None:
    """Start from the averaged weights of the source run, with fresh weights for its dead latent units.

    Raises:
        CheckpointError: the source run has no whole checkpoint, or none that fits.
    """
    source, step = job.request.fix_from, job.train_step
    assert source is not None, "only for a run that repairs another"
    saved = resume.newest_checkpoint(RunFolder(source).checkpoints, job.runtime, job.observer, set_aside=False)
    assert saved is not None, "setup refuses a run without checkpoints"
    for model in (step.model, step.ema.model):
        load_weights(model, saved.tensors("ema"), "model")
    job.observer.notice(f"resume_fix: weights of {source} at step {saved.step:,}; that run itself is not changed")

    # a diagnosis needs a calibrated scale; new units change the terms, so it is calibrated anew from the same start
    uncalibrated = {name: value.clone() for name, value in step.objective.state_dict().items()}
    calibrate(step, job.images, job.noise)
    before, result = examine(job)
    revived = reinit_dead_units(job, result.active)
    step.objective.load_state_dict(uncalibrated)
    calibrate(step, job.images, job.noise)
    units = f"{revived} units that carry nothing get fresh weights, " if revived else ""
    job.observer.notice(
        f"diagnosis: {before.verdict}. {before.describe()}. Repair: {units}the scale is calibrated anew, beta warms up "
        "from 0 again, the optimizer's moments are reset"
    )
    if job.runtime.is_main:
        before.write(job.folder.before)


def examine(job: TrainJob) -> tuple[Diagnosis, ValidationResult]:
    """Validate and diagnose the averaged weights. The objective needs a scale by now: calibrate first."""
    step = job.train_step
    size = job.schedule.micro_batch_size(job.runtime.world_size, 1)
    result = validate(step.ema.model, step.objective, job.data.validation, size, step.micro_batches, 1.0)
    line = PCALine.from_json(job.preflight.to_json(step.objective.beta(1.0)))
    diagnosis = Diagnosis.from_metrics(result.values, step.model.latents, images=len(job.data.validation), line=line)
    return diagnosis, result


def reinit_dead_units(job: TrainJob, active: list[bool]) -> int:
    """Give every latent unit that is not active fresh weights, in the model and its average; returns how many.

    Where the model has a PCA skip, a unit's fresh weights are its principal component. One validation image shows no
    difference between images, so nothing is replaced then.
    """
    config, step = job.config, job.train_step
    dead = ~torch.tensor(active) if len(job.data.validation) > 1 else torch.zeros(len(active), dtype=torch.bool)
    positions = config.model.positions
    dead = dead.view(-1, positions).all(1).repeat_interleave(positions)  # of a map, whole channels
    source = build_model(config.model, seed=key(config.seed, "revived units"))
    assert job.pca is not None, "only a new run has one"
    init_from_pca([source], job.pca, job.preflight, config)
    for model in (step.model, step.ema.model):
        model.reinit_latent_units(dead, source)
    return int(dead.sum())


def compare_with_source(job: TrainJob) -> None:
    """A finalizer: what the repair did, before and after. Every rank takes part in the examination."""
    if job.request.fix_from is None:
        return
    after, _ = examine(job)
    try:
        before = Diagnosis.read(job.folder.before) if job.folder.before.exists() else None
    except CheckpointError as error:  # the run itself is whole
        job.observer.notice(str(error))
        return
    if before:
        job.findings += [
            f"before: {before.verdict}; {before.describe()}",
            f"after:  {after.verdict}; {after.describe()} ({after.psnr - before.psnr:+.2f} dB)",
        ]
