"""The model that a user names: of a run, of one of its checkpoints, of a model's folder, or of the hub."""

from __future__ import annotations

from pathlib import Path

from unified_vae.api.place import local_folder
from unified_vae.api.vae import VAE
from unified_vae.experiment.run_folder import RunFolder
from unified_vae.experiment.subject.subject import Subject, find
from unified_vae.models.pretrained import CONFIG, WEIGHTS
from unified_vae.training.manifest import MANIFEST
from unified_vae.training.observers import Observer


def open_model(target: str, checkpoint: str | None, device: str, observer: Observer) -> VAE:
    """Read the model that `target` names.

    A finished run gives the model that it exported, an unfinished one its best checkpoint.

    Args:
        target: a folder of one of the three kinds, or `owner/name` on the hub.
        checkpoint: `best`, `last` or a step, of a run; None takes its model.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.

    Raises:
        ConfigError, CheckpointError, EnvironmentProblem: there is no such model, or it cannot be read.
    """
    path = Path(target)
    observer.phase("reading the model", 0, None)
    if checkpoint is None and not _is_checkpoint(path) and not _is_unfinished(path):
        return VAE.from_pretrained(target, device=device)
    if path.is_file():
        local_folder(path)  # says what is wrong with it
    return _of_checkpoint(find(path, checkpoint, None, observer.notice)).to(device)


def _of_checkpoint(subject: Subject) -> VAE:
    run = {"name": subject.home.absolute().name, "step": subject.step}
    background = subject.config.data.background
    return VAE(subject.model, subject.config.model, {"run": run, "background": background})


def _is_checkpoint(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def _is_unfinished(path: Path) -> bool:
    """Whether this is a run that has checkpoints and no model yet."""
    folder = RunFolder(path)
    has_model = any((place / WEIGHTS).is_file() and (place / CONFIG).is_file() for place in (path, folder.model))
    return not has_model and folder.has_run()
