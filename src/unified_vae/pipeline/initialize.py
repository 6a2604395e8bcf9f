"""Initializers: what a new run starts from; and the trainer of a run with its log files."""

from __future__ import annotations

import numpy as np

from unified_vae.analysis.preflight import init_from_pca
from unified_vae.core.rng import key, permutation
from unified_vae.data.batches import gather, validation_batches
from unified_vae.inference.image_grids import FITTED_IMAGES, GridWriter
from unified_vae.pipeline.build import calibrate
from unified_vae.pipeline.run_header import run_header
from unified_vae.pipeline.setup import TrainJob
from unified_vae.training.loggers import MetricsLog, SkippedLog, TensorBoardLogger, TimingLog, tensorboard_problem
from unified_vae.training.trainer import Trainer
from unified_vae.training.validation import VAEValidator


def from_pca(job: TrainJob) -> None:
    """Make a model with a PCA skip the optimal linear VAE of the training images; others keep random weights."""
    assert job.pca is not None, "only a new run has one"
    step = job.train_step
    init_from_pca([step.model, step.ema.model], job.pca, job.preflight, job.config)


def calibrate_scale(job: TrainJob) -> None:
    """Give the distortion's scale its first value."""
    calibrate(job.train_step, job.images, job.noise)


def make_trainer(job: TrainJob) -> Trainer:
    """The trainer of a job; the main process opens the log files and tells the observers that the run starts."""
    config, state, folder, runtime = job.config, job.state, job.folder, job.runtime
    metrics_log, grid_writer = None, None
    header = run_header(job)  # on every rank: the first losses are a mean over all of them
    if runtime.is_main:
        job.observer.members += [TimingLog(folder.timing), SkippedLog(folder.skipped, state.skipped_steps)]
        if problem := tensorboard_problem(folder.tensorboard):
            job.observer.notice(problem)
        else:
            values = config.by_path().items()
            plain = {path: v if isinstance(v, bool | int | float | str) else str(v) for path, v in values}
            job.observer.members.append(TensorBoardLogger(folder.tensorboard, plain))
        metrics_log = MetricsLog(folder.metrics, state.metrics_rows, job.observer.notice)
        # sample images are drawn of the first validation images and of a few training images
        seed, samples, train, validation = config.seed, config.training.samples, job.data.train, job.data.validation
        count = min(samples.count, len(validation))
        first = next(iter(validation_batches(validation, batch_size=count, rank=0, world_size=1)))
        subset = np.sort(permutation(key(seed, "sheets"), len(train))[:FITTED_IMAGES])
        grid_writer = GridWriter(folder.samples, first, samples.count, seed, gather(train, subset))
    job.observer.run_started(header)
    ema = job.train_step.ema
    job.trainer = Trainer(
        job.train_step,
        job.schedule,
        config.training,
        job.data.train,
        state,
        job.checkpointer,
        runtime=runtime,
        observer=job.observer,
        control=job.control,
        validator=VAEValidator(
            job.train_step,
            job.data.validation,
            job.schedule.micro_batch_size(runtime.world_size, 1),
            job.observer,
            job.preflight.psnr_pca,
        ),
        image_writer=None if grid_writer is None else lambda step, name: grid_writer.write(ema.model, step, name),
        metrics_log=metrics_log,
        cached_images=job.cached_images,
    )
    return job.trainer
