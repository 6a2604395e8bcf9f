"""The plain model folder, from any checkpoint: safetensors and config.json, as a finished run has it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from unified_vae.api.card import CARD, SAMPLES, write_card
from unified_vae.core.errors import EnvironmentProblem
from unified_vae.core.events import Observer
from unified_vae.experiment.export.comparison import Checked, difference
from unified_vae.experiment.export.parts import parts
from unified_vae.experiment.subject.same_weights import Finished, finished_model_or_notice
from unified_vae.experiment.subject.subject import Subject
from unified_vae.models.density.stored import TENSORS as DENSITY_TENSORS
from unified_vae.models.latent_stats import STATS
from unified_vae.models.pretrained import WEIGHTS, describe, load_pretrained, save_pretrained
from unified_vae.models.vae import VAE

PIXELS = "float in [0, 1], channels first"


def write(stage: Path, subject: Subject, observer: Observer) -> list[Checked]:
    """Write the folder, and read it back.

    Raises:
        EnvironmentProblem: what is read is not what was written.
    """
    observer.phase("writing the model folder", 0, None)
    finished = finished_model_or_notice(subject, observer.notice, "So nothing is taken over from there.")
    about = _about(subject)
    save_pretrained(stage, subject.config.model, subject.model.state_dict(), about)
    if finished is not None:
        _copy_what_is_known(finished, subject, stage)
    else:
        write_card(stage, subject.model, {**about, "model": subject.config.model.model_dump()})
        observer.notice("no latent density was fitted to these weights: new pictures are sampled from N(0, I)")
    return [_checked(subject.model, load_pretrained(stage))]


def _about(subject: Subject) -> dict[str, Any]:
    name = subject.home.absolute().name
    run: dict[str, Any] = {"name": name, "license": subject.config.license, "step": subject.step}
    if subject.record is not None:
        run |= {"names": dict(subject.record.names), "data": subject.record.data["description"]}
    return {
        "run": {**run, "weights": subject.weights},
        "loss": subject.config.loss.model_dump(mode="json"),
        "pixels": PIXELS,
        "background": subject.config.data.background,
    }


def _copy_what_is_known(finished: Finished, subject: Subject, stage: Path) -> None:
    """Latent density, statistics, figures and card of these weights."""
    about = dict(finished.content.description)
    about["run"] = {**about.get("run", {}), "weights": subject.weights}
    for name in (DENSITY_TENSORS, STATS, CARD, SAMPLES):
        if (finished.folder / name).is_file():
            shutil.copyfile(finished.folder / name, stage / name)
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
