"""The cure for blur and posterior collapse: what `resume_fix` does before its first step, and no other mode.

It takes the averaged weights of an existing run, says what ails them, gives units that carry nothing
fresh weights, and leaves everything else that held the model down behind: the optimizer's moments, the
distortion's scale, the place in the schedules. The presets then warm beta up again from 0, with more
weight on sharpness and a lower learning rate. The run that is cured is only read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from unified_vae.config.run import RunConfig
from unified_vae.core.counter import key
from unified_vae.core.errors import CheckpointError
from unified_vae.core.principal_components import PrincipalComponents
from unified_vae.data.batches import validation_batches
from unified_vae.data.dataset import DataSets
from unified_vae.experiment.diagnosis.cause import Diagnosis
from unified_vae.experiment.diagnosis.pca_line import PCALine
from unified_vae.experiment.diagnosis.preflight import Preflight, start_at_pca
from unified_vae.experiment.fitting.assemble import Parts
from unified_vae.experiment.run_folder import RunFolder
from unified_vae.models.build import build_model
from unified_vae.training import checkpoint, checkpoint_ring
from unified_vae.training.observers import Observer
from unified_vae.training.runtime import Runtime
from unified_vae.training.saver import load_weights
from unified_vae.training.validation import ValidationResult, validate


def refuse_without_checkpoint(patient: Path) -> None:
    """Tell before anything is loaded that there is nothing to fix.

    Raises:
        CheckpointError: the run in `patient` has saved nothing.
    """
    if not checkpoint_ring.saved_steps(RunFolder(patient).checkpoints):
        raise CheckpointError(
            f"{patient} holds no checkpoint, so there is nothing to fix. Name a run that has trained with --run-dir."
        )


def take_over(patient: Path, parts: Parts, observer: Observer, runtime: Runtime) -> None:
    """Put the averaged weights of the run in `patient` into both models, the same ones on every rank.

    Raises:
        CheckpointError: no checkpoint is whole, or none fits.
    """
    root, newest = RunFolder(patient).checkpoints, None
    if runtime.is_main:
        newest = checkpoint_ring.newest_good(root, observer.notice, set_aside=False)
        assert newest, "refuse_without_checkpoint comes first"
    step = runtime.from_main(newest.step if newest else 0)
    saved = newest or checkpoint.load(root, step)
    load_weights(parts.model, saved.group("ema"), "model")
    load_weights(parts.ema.model, saved.group("ema"), "model")
    observer.notice(f"resume_fix: weights of {patient} at step {saved.step:,}; that run itself is left as it is")


def examine(parts: Parts, data: DataSets, runtime: Runtime, flight: Preflight) -> tuple[Diagnosis, ValidationResult]:
    """Validate the averaged weights. The objective needs a scale by now: calibrate first."""
    size = parts.plan.micro_batch(runtime.world_size, 1)

    def batches(pieces: int) -> Iterator[Tensor]:
        return validation_batches(
            data.validation, batch_size=math.ceil(size / pieces), rank=runtime.rank, world_size=runtime.world_size
        )

    result = validate(parts.ema.model, parts.objective, batches, size, parts.stepper.micro_batches, 1.0)
    line = PCALine.from_json(flight.to_json(parts.objective.beta(1.0)))
    return Diagnosis.of(result.values, parts.model.latents, images=len(data.validation), line=line), result


def revive(
    parts: Parts,
    config: RunConfig,
    data: DataSets,
    active: list[bool],
    basis: PrincipalComponents,
    flight: Preflight,
) -> int:
    """Give every unit that is not active fresh weights, in the model and its average; returns how many.

    Where the model has a linear path, a unit's fresh weights are its principal component. One validation image shows no
    difference between images, so nothing is replaced then.
    """
    dead = ~torch.tensor(active) if len(data.validation) > 1 else torch.zeros(len(active), dtype=torch.bool)
    positions = config.model.positions
    dead = dead.view(-1, positions).all(1).repeat_interleave(positions)  # of a map, whole channels
    donor = build_model(config.model, seed=key(config.seed, "revived units"))
    start_at_pca([donor], basis, flight, config)
    for model in (parts.model, parts.ema.model):
        model.replace_units(dead, donor)
    return int(dead.sum())


def advice(diagnosis: Diagnosis, revived: int) -> str:
    """What was found and what is done about it, in a sentence."""
    remedy = "the scale is calibrated anew, beta starts again from 0, the optimizer forgets its moments"
    units = f"{revived} units that carry nothing get fresh weights, " if revived else ""
    return f"diagnosis: {diagnosis.verdict}. {diagnosis.figures()}. Cure: {units}{remedy}"


def comparison(before: Diagnosis, after: Diagnosis) -> list[str]:
    """Before and after, for the end of the run."""
    return [
        f"before: {before.verdict}; {before.figures()}",
        f"after:  {after.verdict}; {after.figures()} ({after.psnr - before.psnr:+.2f} dB)",
    ]
