"""The half-precision audit of an export: which images, what it decides, and where the verdict is kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from unified_vae.api.card import CARD, half_precision
from unified_vae.core.durable import write_text
from unified_vae.core.errors import ConfigError, EnvironmentProblem, UserError
from unified_vae.core.events import Observer
from unified_vae.core.out_of_memory import is_out_of_memory
from unified_vae.data.batches import gather
from unified_vae.experiment.export.request import ExportRequest
from unified_vae.experiment.subject.images import open_images, refuse_other_channels
from unified_vae.experiment.subject.same_weights import finished_model_or_notice
from unified_vae.experiment.subject.subject import Subject
from unified_vae.models.half_precision import HalfAudit, audit
from unified_vae.models.pretrained import CONFIG, describe
from unified_vae.training.distributed import open_runtime

HALF_PRECISION = "half_precision"  # the entry of the config file


def audited(request: ExportRequest, subject: Subject, observer: Observer) -> tuple[HalfAudit | None, Sequence[str]]:
    """The audit, and what to say of it.

    Raises:
        ConfigError: half precision was asked for and is not safe, or there are no images to find out.
        EnvironmentProblem: memory does not suffice.
    """
    images = _images(request, subject, observer)
    if images is None:
        if request.half is not None:
            raise ConfigError("--half needs the audit, and there are no images for it: name some with --data")
        why = "--images 0" if request.images == 0 else "name images with --data"
        return None, [f"half precision was not audited: {why}"]
    with open_runtime(request.device or subject.config.device, "fp32") as runtime:
        try:
            found = audit(subject.model.to(runtime.device), images, observer.phase)
        except RuntimeError as problem:
            if not is_out_of_memory(problem):
                raise
            raise EnvironmentProblem(
                f"{runtime.device} ran out of memory in the audit of half precision: name another with --device, or "
                "leave the audit out with --images 0"
            ) from problem
        finally:
            subject.model.to("cpu")
    if request.half is not None and not found.of(request.half.value).safe:
        raise ConfigError(f"--half {request.half} is not safe for this model. {found.verdict()}.")
    return found, found.lines()


def _images(request: ExportRequest, subject: Subject, observer: Observer) -> Tensor | None:
    """Validation images, uint8; None where none were named and those of the run are not there."""
    if request.images == 0 or (request.data is None and subject.record is None):
        return None
    try:
        data = open_images(subject, request.data, observer, max_images=subject.config.data.max_images)
    except UserError as problem:
        if request.data is not None:
            raise
        observer.notice(f"the run's images cannot be opened: {problem}")
        return None
    refuse_other_channels(data, subject)
    return gather(data.validation, np.arange(min(request.images, len(data.validation))))


def keep_with_run(found: HalfAudit, subject: Subject, observer: Observer) -> None:
    """Write the verdict into the run's own model folder, where it holds these weights."""
    finished = finished_model_or_notice(subject, observer.notice, "So the verdict on half precision is not kept there.")
    if finished is None:
        return
    folder = finished.folder
    try:
        keep(folder, found)
    except UserError as problem:
        observer.notice(f"the verdict on half precision could not be kept in {folder / CONFIG}: {problem}")


def keep(folder: Path, found: HalfAudit) -> None:
    """Write the verdict into a complete model's folder, in place of an earlier one.

    Raises:
        EnvironmentProblem: the folder cannot be written.
    """
    describe(folder, {HALF_PRECISION: found.to_json()})
    if (folder / CARD).is_file():
        text = (folder / CARD).read_text(encoding="utf-8")
        write_text(folder / CARD, _in_card(text, half_precision(found.verdict())))


def _in_card(text: str, section: str) -> str:
    """A card with the section in place of the one of its title, or before the last; all else stays as it is."""
    title = section.splitlines()[0]
    sections = text.split("\n## ")
    others = [part for part in sections if f"## {part.splitlines()[0] if part else ''}" != title]
    place = len(others) - 1 if len(others) > 1 else 1
    return "\n## ".join([*others[:place], section.removeprefix("## ") + "\n", *others[place:]])
