"""The model that a user names for work on a whole data set, on the hub as well as on this machine."""

from __future__ import annotations

from pathlib import Path

from unified_vae.api.place import HUB, is_hub_id, model_folder
from unified_vae.experiment.subject.subject import Subject, find
from unified_vae.training.observers import Observer


def subject_at(target: Path, checkpoint: str | None, data: str | None, observer: Observer) -> Subject:
    """A run, one of its checkpoints, a model's folder, or `owner/name` on the hub.

    Raises:
        UserError: there is no such model, or it cannot be read.
    """
    text = target.as_posix()
    on_hub = text.startswith(HUB) or is_hub_id(text)
    return find(model_folder(text) if on_hub else target, checkpoint, data, observer.notice, looks=False)
