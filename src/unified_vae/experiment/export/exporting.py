"""The verb `export`: audit, write beside the final place, load back, compare, and only then take the name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unified_vae.core.events import Observer
from unified_vae.core.version import __version__
from unified_vae.experiment.export import diffusers_folder, model_folder, onnx_files, torch_programs
from unified_vae.experiment.export.auditing import HALF_PRECISION, audited, keep, keep_with_run
from unified_vae.experiment.export.comparison import Checked
from unified_vae.experiment.export.parts import Part, parts
from unified_vae.experiment.export.place import check, default_output, staged, write_about
from unified_vae.experiment.export.request import ExportRequest, Format, Weights
from unified_vae.experiment.subject.subject import Subject, WeightsName, find
from unified_vae.models.half_precision import DTYPES, HalfAudit, half_copy

ASKED: dict[Weights, WeightsName] = {Weights.EMA: "ema", Weights.RAW: "raw"}


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
    asked: WeightsName | None = None if request.weights is None else ASKED[request.weights]
    subject = find(request.target, request.checkpoint, request.data, observer.notice, weights=asked, looks=False)
    if request.to is Format.DIFFUSERS:
        diffusers_folder.shape_of(subject)  # a model that cannot be one is told so at once
    folder = request.output or default_output(request, subject.home, subject.step, subject.weights)
    with staged(folder) as stage:
        found, verdicts = audited(request, subject, observer)
        checked = _write(stage, request, subject, found, observer)
        entry = {} if found is None else {HALF_PRECISION: found.to_json()}
        if request.to is Format.SAFETENSORS and found is not None:
            keep(stage, found)
        write_about(stage, {**_facts(request, subject), **entry, "compared": [vars(one) for one in checked]})
    if found is not None:
        keep_with_run(found, subject, observer)
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
            return model_folder.write(stage, subject, observer)
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
        "producer": f"unified-vae {__version__}, torch {torch.__version__}",
        "model": subject.name,
        "family": subject.config.model.family,
        "weights": subject.weights,
        "precision": "fp32" if request.half is None else str(request.half),
        "pixels": f"{pixels}; {'RGB' if model.channels == 3 else 'grey'}; clip what the decoder gives",
        "image_size": model.image_size,
        "channels": model.channels,
        "latents": model.latents,
    }
