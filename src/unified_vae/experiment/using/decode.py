"""The verb `decode`: latents of a file back to images."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from unified_vae.core.errors import ConfigError, DataError
from unified_vae.experiment.subject.subject import Subject
from unified_vae.experiment.using.identity import fingerprint
from unified_vae.experiment.using.image_output import ImageOutput, check_output, file_names, output_for
from unified_vae.experiment.using.latent_source import Latents, batches, open_latents
from unified_vae.experiment.using.scaling import Scaling, scaling_of
from unified_vae.experiment.using.stage import Stage, alone, check_room
from unified_vae.experiment.using.subject_at import subject_at
from unified_vae.models.vae import VAE
from unified_vae.training.config import Precision
from unified_vae.training.observers import Observer
from unified_vae.training.runtime import Runtime, open_runtime

BATCH = 64


@dataclass(frozen=True)
class DecodeRequest:
    """What is asked for.

    Attributes:
        target: a run's folder, a checkpoint's in it, or an exported model's.
        latents: .safetensors, .npy, .parquet, or the .json of an encoding.
        output: a folder (no suffix), .npy, or .png for a sheet.
        checkpoint: a step, `best` or `last`; None takes the best there is.
        scale: the latents were shifted and scaled by another program; those of `encode --scale` say so themselves.
        other_model: decode although the file says that another model made the latents.
        batch_size: images at once.
        device: auto, cpu, ...; None as the run had it.
        precision: of the network.
    """

    target: Path
    latents: Path
    output: Path
    checkpoint: str | None = None
    scale: bool = False
    other_model: bool = False
    batch_size: int = BATCH
    device: str | None = None
    precision: Precision = "fp32"


@dataclass(frozen=True)
class Decoded:
    """What was written: the output, how many images it has, how many this process decoded, in which time."""

    output: Path
    images: int
    computed: int
    seconds: float


def decode(request: DecodeRequest, observer: Observer) -> Decoded:
    """Write the images, or the rest of them.

    Raises:
        UserError: there is no such model, the latents are another's or no latents, the output is something else's.
    """
    check_output(request.output)
    latents = open_latents(request.latents)
    subject = subject_at(request.target, request.checkpoint, None, observer)
    weights = fingerprint(subject.model)
    _check(latents, subject, weights, request)
    scaling = _scaling(latents, subject, request)
    with (
        open_runtime(request.device or subject.config.device, request.precision) as runtime,
        alone(request.output),
    ):
        names = file_names(latents.ids or [f"{row:08}" for row in range(latents.rows)])
        stage = Stage(request.output, _plan(request, latents, weights, names, scaling, runtime), observer.notice)
        with stage.removed_if_refused():
            output = output_for(request.output, stage.folder, names, _shape(subject.model))
            if request.output.suffix:
                rows = (
                    latents.rows - stage.rows if output.resumes else min(latents.rows, output.at_most or latents.rows)
                )
                check_room(request.output, rows * int(np.prod(_shape(subject.model))))
        model = subject.model.to(runtime.device).eval()
        try:
            found = _fill(model, latents, output, stage, scaling, runtime, request, observer)
        except DataError:
            stage.remove()  # from these latents nothing can be taken up again
            raise
        stage.remove()
    return found


def _fill(
    model: VAE,
    latents: Latents,
    output: ImageOutput,
    stage: Stage,
    scaling: Scaling | None,
    runtime: Runtime,
    request: DecodeRequest,
    observer: Observer,
) -> Decoded:
    first = stage.rows if output.resumes else 0
    count = latents.rows if output.at_most is None else min(latents.rows, output.at_most)
    begun, computed = time.monotonic(), 0
    for rows in batches(latents, first, request.batch_size):
        rows = rows[: count - first]
        _refuse_not_finite(rows, first, request.latents)
        output.put(first, pixels_of(model, rows, scaling, runtime))
        first, computed = first + len(rows), computed + len(rows)
        observer.phase("decoding latents", first, count)
        if first >= count:
            break
        if stage.due():
            output.sync()
            stage.save(0, first)
    output.finish(request.output)
    if count < latents.rows:
        observer.notice(f"the sheet shows the first {count:,} of {latents.rows:,} images")
    return Decoded(request.output, count, computed, time.monotonic() - begun)


def _refuse_not_finite(rows: npt.NDArray[np.float32], first: int, path: Path) -> None:
    good = np.isfinite(rows).all(1)
    if not good.all():
        raise DataError(
            f"{path}: row {first + int(good.argmin()):,} (from 0) holds NaN or infinite numbers, which are no latents: "
            "mend the file or make it anew"
        )


@torch.no_grad()
def pixels_of(
    model: VAE, rows: npt.NDArray[np.float32], scaling: Scaling | None, runtime: Runtime
) -> npt.NDArray[np.uint8]:
    """Images of latents [n, latents]: uint8 [n, height, width, channels]."""
    latents = torch.from_numpy(rows).to(runtime.device)
    if scaling is not None:
        latents = scaling.undone(latents)
    with runtime.autocast():
        images = model.decode(latents).float().clamp(0, 1)
    pixels: npt.NDArray[np.uint8] = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return pixels


def _shape(model: VAE) -> tuple[int, int, int]:
    return model.image_size, model.image_size, model.channels


def _check(latents: Latents, subject: Subject, weights: str, request: DecodeRequest) -> None:
    if latents.rows == 0:
        raise DataError(f"{request.latents} has no rows")
    if latents.width != subject.model.latents:
        raise DataError(
            f"{request.latents} holds {latents.width:,} numbers an image, and {subject.name} has "
            f"{subject.model.latents:,} latents: decode with the model that made them"
        )
    made_by = latents.about.get("model", {})
    if made_by.get("fingerprint", weights) != weights and not request.other_model:
        raise ConfigError(
            f"{request.latents} was made by other weights ({made_by.get('name', 'unnamed')}) than {subject.name}: "
            "decode with those, or say --other-model"
        )


def _scaling(latents: Latents, subject: Subject, request: DecodeRequest) -> Scaling | None:
    """As the file tells; as --scale says for files that tell nothing."""
    told: Mapping[str, Any] | None = latents.about.get("latents", {}).get("scaling")
    if told is not None:
        return Scaling(float(told["shift"]), float(told["scale"]))
    if not request.scale:
        return None
    if "latents" in latents.about:
        raise ConfigError(f"{request.latents} says that its latents are not scaled: leave --scale out")
    return scaling_of(subject)


def _plan(
    request: DecodeRequest,
    latents: Latents,
    weights: str,
    names: list[str],
    scaling: Scaling | None,
    runtime: Runtime,
) -> dict[str, Any]:
    """What decides every byte of the output."""
    status = request.latents.stat()
    return {
        "weights": weights,
        "latents": [request.latents.name, status.st_size, status.st_mtime_ns, latents.rows],
        "names": hashlib.sha256("\n".join(names).encode()).hexdigest(),
        "scaling": None if scaling is None else [scaling.shift, scaling.scale],
        "computed": [runtime.device.type, request.precision, request.batch_size],
    }
