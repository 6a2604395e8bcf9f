"""The plain model folder, from any checkpoint: safetensors and config.json, as a finished run has it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from unified_vae.api.card import CARD, SAMPLES, write_card
from unified_vae.core.errors import EnvironmentProblem
from unified_vae.experiment.export.comparison import Checked, difference
from unified_vae.experiment.export.parts import parts
from unified_vae.experiment.export.request import Weights
from unified_vae.experiment.run_folder import RunFolder
from unified_vae.experiment.subject import Subject
from unified_vae.models.density.stored import TENSORS as DENSITY_TENSORS
from unified_vae.models.latent_stats import STATS
from unified_vae.models.pretrained import CONFIG, WEIGHTS, describe, load_pretrained, save_pretrained
from unified_vae.models.vae import VAE
from unified_vae.training.observers import Observer

PIXELS = "float in [0, 1], channels first"


def finished_model(subject: Subject, weights: Weights) -> Path | None:
    """The run's own model folder, where it holds these very weights; None where there is none."""
    folder = subject.home if (subject.home / WEIGHTS).is_file() else RunFolder(subject.home).model
    try:
        about = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        same = weights is Weights.EMA and about["run"]["step"] == subject.step
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return folder if same else None


def write(stage: Path, subject: Subject, weights: Weights, observer: Observer) -> list[Checked]:
    """Write the folder, and read it back.

    Raises:
        EnvironmentProblem: what is read is not what was written.
    """
    observer.phase("writing the model folder", 0, None)
    finished = finished_model(subject, weights)
    about = _about(subject, weights)
    save_pretrained(stage, subject.config.model, subject.model.state_dict(), about)
    if finished is not None:
        _copy_what_is_known(finished, stage)
    else:
        write_card(stage, subject.model, {**about, "model": subject.config.model.model_dump()})
        observer.notice("no latent density was fitted to these weights: new pictures are sampled from N(0, I)")
    return [_checked(subject.model, load_pretrained(stage))]


def _about(subject: Subject, weights: Weights) -> dict[str, Any]:
    name = subject.home.absolute().name
    run: dict[str, Any] = {"name": name, "license": subject.config.license, "step": subject.step}
    if subject.record is not None:
        run |= {"names": dict(subject.record.names), "data": subject.record.data["description"]}
    return {
        "run": {**run, "weights": str(weights)},
        "loss": subject.config.loss.model_dump(mode="json"),
        "pixels": PIXELS,
        "background": subject.config.data.background,
    }


def _copy_what_is_known(finished: Path, stage: Path) -> None:
    """Latent density, statistics, figures and card of these weights."""
    about = json.loads((finished / CONFIG).read_text(encoding="utf-8"))
    for name in (DENSITY_TENSORS, STATS, CARD, SAMPLES):
        if (finished / name).is_file():
            shutil.copyfile(finished / name, stage / name)
    describe(stage, {name: entry for name, entry in about.items() if name not in ("format", "model")})


def _checked(model: VAE, again: VAE) -> Checked:
    """Every tensor, and both halves at every batch size, have to be equal."""
    here, there = model.state_dict(), again.state_dict()
    pairs = [(value, there[name]) for name, value in here.items()]
    for mine, other in zip(parts(model), parts(again), strict=True):
        for batch in mine.batches:
            pairs += zip(mine.results(batch), other.results(batch), strict=True)
    absolute, relative = map(max, zip(*(difference(*pair) for pair in pairs), strict=True))
    if absolute:
        raise EnvironmentProblem(f"{WEIGHTS} was written, but holds other numbers when read again: check the disk.")
    return Checked(WEIGHTS, absolute, relative, "unified-vae")
