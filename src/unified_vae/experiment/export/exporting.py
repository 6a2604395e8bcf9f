"""The verb `export`: audit, write beside the final place, load back, compare, and only then take the name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unified_vae.core.errors import ConfigError, DataError, UserError
from unified_vae.data.batches import gather
from unified_vae.data.open import open_data
from unified_vae.experiment.export import diffusers_folder, model_folder, onnx_files, torch_programs
from unified_vae.experiment.export.comparison import Checked
from unified_vae.experiment.export.parts import Part, parts
from unified_vae.experiment.export.place import check, default_output, staged, write_about
from unified_vae.experiment.export.request import ExportRequest, Format
from unified_vae.experiment.subject import Subject, find
from unified_vae.models.half_precision import DTYPES, HalfAudit, audit, half_copy
from unified_vae.models.pretrained import CONFIG, describe
from unified_vae.training.observers import Observer
from unified_vae.training.runtime import open_runtime

HALF_PRECISION = "half_precision"  # the entry of the config file


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        name: of the model, e.g. `runs/x at step 1,234 (best)`.
        files: with sizes in bytes; those that were compared have a `Checked`.
        verdicts: lines on half precision; why there is none where there was no audit.
    """

    name: str
    folder: Path
    files: dict[str, int]
    checked: Sequence[Checked]
    verdicts: Sequence[str]


def export(request: ExportRequest, observer: Observer) -> Exported:
    """Write what is asked for; where anything fails, nothing lies under the final name.

    Raises:
        UserError: no such run or weights, half precision is not safe, or the files do not give the model's numbers.
    """
    check(request)
    subject = find(
        request.target, request.checkpoint, request.data, observer.notice, weights=request.weights.value, looks=False
    )
    if request.to is Format.DIFFUSERS:
        diffusers_folder.shape_of(subject)  # a model that cannot be one is told so at once
    folder = request.output or default_output(request, subject.home, subject.step)
    with staged(folder) as stage:
        found, verdicts = _audited(request, subject, observer)
        checked = _write(stage, request, subject, found, observer)
        entry = {} if found is None else {HALF_PRECISION: found.to_json()}
        if request.to is Format.SAFETENSORS:
            describe(stage, entry)
        write_about(stage, {**_facts(request, subject), **entry, "compared": [vars(one) for one in checked]})
    if found is not None:
        _keep(found, subject, request, observer)
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    return Exported(subject.name, folder, files, checked, verdicts)


def _write(
    stage: Path, request: ExportRequest, subject: Subject, found: HalfAudit | None, observer: Observer
) -> list[Checked]:
    half = request.half is not None
    match request.to:
        case Format.ONNX:
            facts = {name: str(value) for name, value in _facts(request, subject).items()}
            return onnx_files.write(stage, _parts(request, subject), facts, half, observer)
        case Format.TORCH:
            return torch_programs.write(stage, _parts(request, subject), observer)
        case Format.AOTI:
            return torch_programs.write_compiled(stage, _parts(request, subject), half, observer)
        case Format.SAFETENSORS:
            return model_folder.write(stage, subject, request.weights, observer)
        case Format.DIFFUSERS:
            return diffusers_folder.write(stage, subject, found, request, observer)


def _parts(request: ExportRequest, subject: Subject) -> list[Part]:
    model = subject.model
    return list(parts(model if request.half is None else half_copy(model, DTYPES[request.half.value])))


def _facts(request: ExportRequest, subject: Subject) -> dict[str, Any]:
    """What a reader of the files has to know."""
    model = subject.model
    pixels = diffusers_folder.PIXELS if request.to is Format.DIFFUSERS else model_folder.PIXELS
    return {
        "producer": f"unified-vae {version('unified-vae')}, torch {torch.__version__}",
        "model": subject.name,
        "family": subject.config.model.family,
        "weights": str(request.weights),
        "precision": "fp32" if request.half is None else str(request.half),
        "pixels": f"{pixels}; {'RGB' if model.channels == 3 else 'grey'}; clip what the decoder gives",
        "image_size": model.image_size,
        "channels": model.channels,
        "latents": model.latents,
    }


# --- half precision --------------------------------------------------------------------------------------


def _audited(request: ExportRequest, subject: Subject, observer: Observer) -> tuple[HalfAudit | None, Sequence[str]]:
    """The audit, and what to say of it.

    Raises:
        ConfigError: half precision was asked for and is not safe, or there are no images to find out.
    """
    images = _images(request, subject, observer)
    if images is None:
        if request.half is not None:
            raise ConfigError("--half needs the audit, and there are no images for it: name some with --data")
        return None, ["half precision was not audited: name images with --data"]
    with open_runtime(request.device or subject.config.device, "fp32") as runtime:
        model = subject.model.to(runtime.device)
        try:
            found = audit(model, images, observer.phase)
        finally:
            subject.model.to("cpu")
    if request.half is not None and not found.of(request.half.value).safe:
        raise ConfigError(f"--half {request.half} is not safe for this model. {found.verdict()}.")
    return found, found.lines()


def _images(request: ExportRequest, subject: Subject, observer: Observer) -> Tensor | None:
    """Validation images, uint8; None where none were named and those of the run are not there."""
    if request.images == 0 or (request.data is None and subject.record is None):
        return None
    config, model = subject.config.data, subject.model
    if request.data is not None:
        config = config.model_copy(update={"source": request.data})
    wanted = subject.record.requested.model.channels if subject.record and request.data is None else model.channels
    try:
        data = open_data(config, model.image_size, None if wanted == "auto" else wanted, observer.phase)
    except UserError as problem:
        if request.data is not None:
            raise
        observer.notice(f"the run's images cannot be opened: {problem}")
        return None
    if data.channels != model.channels:
        raise DataError(f"the images have {data.channels} channel(s) now and the model {model.channels}: see --data")
    return gather(data.validation, np.arange(min(request.images, len(data.validation))))


def _keep(found: HalfAudit, subject: Subject, request: ExportRequest, observer: Observer) -> None:
    """Write the verdict into the run's own model folder, where it holds these weights."""
    folder = model_folder.finished_model(subject, request.weights)
    if folder is None:
        return
    try:
        describe(folder, {HALF_PRECISION: found.to_json()})
    except UserError as problem:
        observer.notice(f"the verdict on half precision could not be kept in {folder / CONFIG}: {problem}")
