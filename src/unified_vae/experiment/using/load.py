"""Open the model that a user names: of a run, of one of its checkpoints, of a model's folder, or of the hub."""

from __future__ import annotations

from pathlib import Path

from unified_vae.api.place import HUB, is_hub_id, local_folder, model_folder
from unified_vae.api.vae import VAE
from unified_vae.core.checkpoint_format import MANIFEST
from unified_vae.core.events import Observer
from unified_vae.experiment.run_folder import RunFolder
from unified_vae.experiment.subject.subject import Subject, find
from unified_vae.models.pretrained import CONFIG, WEIGHTS


def load_subject(target: Path, checkpoint: str | None, data: str | None, observer: Observer) -> Subject:
    """The model with what its run says of it, for work on a whole data set.

    Raises:
        UserError: there is no such model, or it cannot be read.
    """
    text = target.as_posix()
    on_hub = text.startswith(HUB) or is_hub_id(text)
    return find(model_folder(text) if on_hub else target, checkpoint, data, observer.notice, looks=False)


def load_vae(target: str, checkpoint: str | None, device: str, observer: Observer) -> VAE:
    """The model alone. A finished run gives the one that it exported, an unfinished one its best checkpoint.

    Args:
        target: a folder of one of the three kinds, or `owner/name` on the hub.
        checkpoint: `best`, `last` or a step, of a run; None takes its model.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.

    Raises:
        ConfigError, CheckpointError, EnvironmentProblem: there is no such model, or it cannot be read.
    """
    path = Path(target)
    observer.phase("reading the model", 0, None)
    folder = RunFolder(path)
    is_exported = any((each / WEIGHTS).is_file() and (each / CONFIG).is_file() for each in (path, folder.model))
    is_checkpoint = (path / MANIFEST).is_file()
    if checkpoint is None and not is_checkpoint and (is_exported or not folder.has_run()):
        return VAE.from_pretrained(target, device=device)
    if path.is_file():
        local_folder(path)  # says what is wrong with it
    subject = find(path, checkpoint, None, observer.notice)
    run = {"name": subject.home.absolute().name, "step": subject.step}
    about = {"run": run, "background": subject.config.data.background}
    return VAE(subject.model, subject.config.model, about).to(device)
