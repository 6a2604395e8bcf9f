"""The model's folder that holds a subject's very weights, with what was found out about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from unified_vae.core.errors import CheckpointError
from unified_vae.experiment.run_folder import RunFolder
from unified_vae.experiment.subject.subject import Subject
from unified_vae.models.pretrained import CONFIG, Pretrained, open_pretrained
from unified_vae.models.vae import VAE


@dataclass(frozen=True)
class Finished:
    """A complete model, and where it lies."""

    folder: Path
    content: Pretrained


def finished_model(subject: Subject) -> Finished | None:
    """The folder that the subject was read from, else its run's, where every weight is equal; None without one.

    Raises:
        CheckpointError: the folder is damaged.
    """
    folder = subject.folder or (None if subject.run_dir is None else RunFolder(subject.run_dir).model)
    if folder is None or not (folder / CONFIG).is_file():
        return None
    content = open_pretrained(folder)
    return Finished(folder, content) if _equal(content.model, subject.model) else None


def finished_model_or_notice(subject: Subject, notice: Callable[[str], None], so: str) -> Finished | None:
    """The same, where a damaged folder is no reason to stop.

    Args:
        so: what follows from the damage, as a sentence of its own.
    """
    try:
        return finished_model(subject)
    except CheckpointError as problem:
        notice(f"{problem} {so}")
        return None


def _equal(one: VAE, other: VAE) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(value, theirs[name].cpu()) for name, value in mine.items())
