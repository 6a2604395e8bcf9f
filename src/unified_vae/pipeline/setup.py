"""Setup: from a request to a `TrainJob`: data, resolved settings, model, step, checkpointer, state."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from unified_vae.analysis.diagnosis import Diagnosis
from unified_vae.analysis.preflight import Preflight, run_preflight
from unified_vae.config.data import DataConfig
from unified_vae.config.run import ComposedRun, RunConfig, RunRecord, resolved_origins
from unified_vae.core import retention
from unified_vae.core.device import environment, is_out_of_memory
from unified_vae.core.errors import CheckpointError, EnvironmentProblem
from unified_vae.core.events import Difference, Observer, Observers
from unified_vae.core.files import write_text
from unified_vae.core.linear_vae import PrincipalComponents
from unified_vae.core.run_dir import RunFolder
from unified_vae.data.batches import (
    TrainBatch,
    batch_indices,
    cache_on_device,
    fits_on_device,
    gather,
    rank_slice,
    steps_per_epoch,
)
from unified_vae.data.dataset import DataSets, PackedSplit
from unified_vae.data.prepare import open_data
from unified_vae.data.sources.find import absolute_source
from unified_vae.losses.build import Substitution, resolve_terms
from unified_vae.losses.kl import equivalent_linear_vae
from unified_vae.pipeline import autotune, resume
from unified_vae.pipeline.build import ResolvedConfig, build_vae_step, make_schedule, total_steps, with_shared_batch
from unified_vae.pipeline.plan import RunRequest
from unified_vae.training.checkpointer import Checkpointer
from unified_vae.training.control import TrainControl
from unified_vae.training.distributed import Runtime
from unified_vae.training.memory import available_memory
from unified_vae.training.state import TrainSchedule, TrainState
from unified_vae.training.train_step import VAEStep, to_unit_range
from unified_vae.training.trainer import Trainer

GIB = 2**30
FEW_VALIDATION_IMAGES = 16

StepBuilder = Callable[[RunConfig, DataSets, Runtime], VAEStep]
"""Makes the step of a run: `build_vae_step`, or what a `TrainStep` of one's own adds to it."""


@dataclass
class TrainJob:
    """Everything that one start of a run works with; passed whole to initializers and finalizers.

    Attributes:
        resolved: the settings as they are computed.
        preflight: what linear theory says of the training images.
        pca: their principal components; None on resume.
        resumed_from: the record of the run that is continued; None for a new one.
        differences: settings that changed since the checkpoint.
        images, noise: this rank's share of the first batch, images in [0, 1], on the device.
        cached_images: the training images on the device, where they fit.
        data_location: where the training images are, in words.
        findings: lines to show at the end, which finalizers add.
        diagnosis: the result of the finalizer of that name.
    """

    request: RunRequest
    runtime: Runtime
    observer: Observers
    folder: RunFolder
    data: DataSets
    resolved: ResolvedConfig
    preflight: Preflight
    pca: PrincipalComponents | None
    record: RunRecord
    resumed_from: RunRecord | None
    differences: Sequence[Difference]
    train_step: VAEStep
    schedule: TrainSchedule
    state: TrainState
    checkpointer: Checkpointer
    images: Tensor
    noise: Tensor
    cached_images: Tensor | None
    data_location: str
    started: float
    control: TrainControl = field(default_factory=TrainControl)
    trainer: Trainer | None = None
    findings: list[str] = field(default_factory=list)
    diagnosis: Diagnosis | None = None

    @property
    def config(self) -> RunConfig:
        """The resolved settings."""
        return self.resolved.config


def setup(
    request: RunRequest, runtime: Runtime, observer: Observers, build_step: StepBuilder | None = None
) -> TrainJob:
    """Make everything a run needs, up to its first step; a run that is in the folder is loaded.

    Args:
        build_step: makes the training step; None for `build_vae_step`.

    Raises:
        UserError: settings, data or environment that the user can fix.
    """
    started = time.monotonic()
    build_step = build_step or build_vae_step
    run, folder = request.run, RunFolder(request.run_dir)
    run = replace(run, config=run.config.replace(**{"data.source": absolute_source(run.config.data.source)}))
    _prepare_folder(request, folder, runtime, observer)

    # an earlier run in this folder, and what changed since
    checkpoint = resume.newest_checkpoint(folder.checkpoints, runtime, observer)
    record = RunRecord.from_json(checkpoint.entry("record"), folder.root) if checkpoint else None
    differences = resume.differences(record, run.config) if record else []
    if checkpoint is not None and checkpoint.step == 0 and differences:  # nothing was trained yet
        checkpoint, record, differences = None, None, []
    if record:
        resume.refuse_impossible(differences, record, run.names, folder.root, run.origins)
        if run.config.data.split_by == "auto":
            run = replace(run, config=run.config.replace(**{"data.split_by": record.resolved.data.split_by}))
    elif request.fix_from and not retention.saved_steps(RunFolder(request.fix_from).checkpoints):
        raise CheckpointError(
            f"{request.fix_from} holds no checkpoint, so there is nothing to fix. Name a run that has trained with "
            "--run-dir."
        )

    # images, and what linear theory says of them
    data = open_images(run, runtime, observer)
    about_data = {"fingerprint": data.fingerprint, "description": data.description}
    if record:
        changes = data.inventory.changes_since(folder.root, record.data["fingerprint"])
        accept = run.config.data.allow_changed_data
        if difference := resume.refuse_other_data(record, about_data, accept, changes):
            differences.append(difference)
        theory, pca = Preflight.from_json(record.preflight), None
    else:
        observer.phase("computing the PCA of the training images", 0, None)
        result = run_preflight(run.config, data, runtime.device) if runtime.is_main else None
        result = runtime.broadcast_object(result)
        assert result is not None
        theory, pca = result
        if len(data.validation) <= FEW_VALIDATION_IMAGES:
            observer.notice(
                f"{len(data.train):,} images to train, {len(data.validation)} to validate: with so few, figures of "
                "quality are rough"
            )

    # settings: every `auto` gets an answer, the one of the record where there is one
    # the images take their memory before anything is measured in what they leave; a resumed run measures none
    cached, location = (None, "") if record else cache_images(data.train, run.config.data, runtime)
    resolved = resolve(run, data, runtime, observer, theory, record)
    runtime = runtime.with_memory_format(resolved.config.training.memory_format)
    if record:
        per_epoch = steps_per_epoch(len(data.train), resolved.config.training.images_per_step)
        resume.refuse_other_counts(record, resolved.config, per_epoch, folder.root)

    # what trains
    train_step = build_step(resolved.config, data, runtime)
    schedule = make_schedule(resolved.config, data, train_step.objective, repairs=request.fix_from is not None)
    new_record = RunRecord(
        run.config,
        resolved.config,
        resolved_origins(run, resolved.config, resolved.reasons),
        run.names,
        tuple((entry.term, entry.replacement, entry.reason) for entry in resolved.substitutions),
        about_data,
        schedule.steps_per_epoch,
        environment(),
        theory.to_json(theory.planned_beta(resolved.config.loss.kl)),
    )

    def keep_beta(saved: Mapping[str, Any]) -> None:
        """Where GECO moved beta from another `kl.weight`, the checkpoint has the factor; it is beta that stays."""
        kl = saved["config"]["loss"]["kl"] if saved else {}
        if kl.get("constraint", {}).get("kind") == "geco":
            train_step.objective.keep_beta(kl["weight"])

    checkpointer = Checkpointer(
        folder.checkpoints,
        resolved.config.training.checkpoint,
        train_step.stateful,
        steps_per_epoch=schedule.steps_per_epoch,
        runtime=runtime,
        observer=observer,
        record=new_record.to_json(),
        after_restore=keep_beta,
    )
    state = checkpointer.restore(checkpoint) if checkpoint else TrainState()
    resume.adopt_changes(state, [difference.path for difference in differences])
    train_step.micro_batches.count = state.num_micro_batches or resolved.config.training.gradient_accumulation_steps
    if state.step < schedule.selection_start_step == schedule.total_steps:
        state.reset_best()  # selection starts at the end only, and the end has moved
    images, noise = first_batch(train_step, data, schedule)
    return TrainJob(
        request=request,
        runtime=runtime,
        observer=observer,
        folder=folder,
        data=data,
        resolved=resolved,
        preflight=theory,
        pca=pca,
        record=new_record,
        resumed_from=record,
        differences=differences,
        train_step=train_step,
        schedule=schedule,
        state=state,
        checkpointer=checkpointer,
        images=images,
        noise=noise,
        cached_images=cached,
        data_location=location,
        started=started,
    )


def _prepare_folder(request: RunRequest, folder: RunFolder, runtime: Runtime, observer: Observers) -> None:
    """Move an earlier run aside where a fresh start was asked for; prove that the folder can be written."""
    if runtime.is_main:
        if not request.resume and folder.has_run():
            moved = folder.move_aside()
            observer.notice(f"the earlier run in {folder.root} was moved aside to {moved}")
        if request.resume and not retention.saved_steps(folder.checkpoints):
            resume.reject_pickle_checkpoints(folder.root, folder.checkpoints)
        folder.prepare()
        folder.sweep()
        retention.sweep(folder.checkpoints)
    runtime.barrier()


def open_images(run: ComposedRun, runtime: Runtime, observer: Observers) -> DataSets:
    """The images; the main process packs them first, the others then find them packed."""
    config, channels = run.config, run.config.model.channels

    def read() -> DataSets:
        count = None if channels == "auto" else channels
        return open_data(config.data, config.model.image_size, count, observer.phase)

    data = read() if runtime.is_main else None
    runtime.barrier()
    return data or read()


def resolve(
    run: ComposedRun,
    data: DataSets,
    runtime: Runtime,
    observer: Observer,
    theory: Preflight,
    record: RunRecord | None = None,
) -> ResolvedConfig:
    """Answer everything that the settings left open; batch size, memory format and compilation may be measured.

    Args:
        theory: the spectrum of the images, for a KL weight in another trainer's convention.
        record: on resume, what was answered when the run began.

    Raises:
        ConfigError: the batch cannot be shared by the ranks.
        EnvironmentProblem: a `strict` term's pretrained weights are missing, or not one image fits in memory.
    """
    known = [Substitution(*entry) for entry in record.substitutions] if record else None
    recorded = record.resolved.training if record else None
    reasons = {"model.channels": "the data"}
    # the main process looks for pretrained weights, and may download them; the others do as it did
    loss, substitutions = resolve_terms(run.config.loss, known) if runtime.is_main else (run.config.loss, [])
    loss, substitutions = runtime.broadcast_object((loss, substitutions))
    for entry in substitutions:
        reasons[f"loss.{entry.term}"] = f"replaced by {entry.replacement}"
        reasons[f"loss.{entry.replacement}"] = f"in place of {entry.term}"
    if loss.kl.reduction != "nats":
        reasons["loss.kl"] = f"{loss.kl.weight:g} in {loss.kl.reduction}, converted for these images"
        # the same KL and distortion, in linear theory, with beta in this project's unit
        spectrum, latents = theory.spectrum, theory.latents
        rest = theory.rest + float(spectrum[latents:].sum())
        linear = equivalent_linear_vae(
            loss.kl.reduction, loss.kl.weight, spectrum[:latents], rest, theory.dimensions, latents
        )
        loss = loss.replace(**{"kl.weight": linear.beta, "kl.reduction": "nats"})
    config = run.config.replace(**{"loss": loss, "model.channels": data.channels})
    images, latents, asked = len(data.train), config.model.latents, config.by_path()
    augment = config.data.augment.resolve(images, latents, data.channels)
    answers = (record.resolved if record else config.replace(**{"data.augment": augment})).by_path()
    for path in resume.RESOLVED_BY_DATA + (resume.RESOLVED_BY_LENGTH if record else ()):
        if asked[path] == "auto":
            config = config.replace(**{path: answers[path]})
            about = f"{images:,} training images of {data.channels} channels for {latents:,} latents"
            reasons[path] = "auto: as when this run began" if record else f"auto: {about}"
    requested = run.config.training.batch_size
    if requested != "auto":
        config = with_shared_batch(config, requested, len(data.train), runtime.world_size)
        if config.training.batch_size != requested:
            reasons["training.batch_size"] = f"the set has {len(data.train)} training images"
    resolved = ResolvedConfig(config, tuple(substitutions), reasons)
    resolved = autotune.with_batch_size(resolved, data, runtime, recorded.images_per_step if recorded else None)
    config = resolved.config
    per_epoch = steps_per_epoch(images, config.training.images_per_step)
    config = config.replace(training=config.training.resolve(total_steps(config, data), per_epoch))
    resolved = replace(resolved, config=config)
    return autotune.with_kernels(resolved, data, runtime, recorded, observer)


def cache_images(split: PackedSplit, config: DataConfig, runtime: Runtime) -> tuple[Tensor | None, str]:
    """The training images on the device, or None where they are read from the pack; and where they are, in words.

    Raises:
        EnvironmentProblem: they were to be on the device, which has no room.
    """
    size, forced = int(np.prod(split.shape)) / GIB, config.cache_on_device is True
    useful = config.cache_on_device == "auto" and runtime.device.type == "cuda"
    if forced or (useful and fits_on_device(split, runtime.free_device_memory())):
        try:
            return cache_on_device(split, runtime.device), f"all {size:.2g} GiB in the memory of {runtime.device}"
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if forced:
                raise EnvironmentProblem(
                    f"the training images take {size:.2g} GiB, and {runtime.device} has no room for them: "
                    "leave data.cache_on_device out."
                ) from error
        runtime.empty_cache()  # outside of the clause above, where the traceback still holds them
    free = available_memory() / GIB
    if size < free / 2:
        return None, f"{size:.2g} GiB mapped from the disk, which stay in main memory once they were read"
    return None, f"{size:.2g} GiB mapped from the disk, more than half of the free {free:.2g} GiB of main memory"


def first_batch(train_step: VAEStep, data: DataSets, schedule: TrainSchedule) -> tuple[Tensor, Tensor]:
    """This rank's images and noise of step 0, as the trainer will see them: images in [0, 1] on the device."""
    runtime = train_step.runtime
    local = rank_slice(schedule.batch_size, runtime.rank, runtime.world_size)
    indices = batch_indices(schedule.seed, 0, len(data.train), schedule.batch_size)[local]
    images, noise = train_step.inputs(TrainBatch(indices, 0, gather(data.train, indices)), 0)
    return to_unit_range(images, runtime.memory_format), noise


def write_run_files(job: TrainJob) -> None:
    """Write what a run says of itself: its record, the list of its images, the preflight, unusable files."""
    if not job.runtime.is_main:
        return
    beta = job.preflight.planned_beta(job.config.loss.kl)
    job.record.write(job.folder.config)
    job.data.inventory.write(job.folder.root)
    write_text(job.folder.preflight, json.dumps(job.preflight.to_json(beta), indent=2) + "\n")
    if job.data.quarantined:
        lines = "".join(entry.format_line("\t") + "\n" for entry in job.data.quarantined)
        write_text(job.folder.quarantine, lines)
