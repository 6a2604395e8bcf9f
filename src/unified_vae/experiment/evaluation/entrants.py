"""The models of a comparison: read, opened on the same images, measured alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from unified_vae.core.errors import ConfigError
from unified_vae.core.events import Observer
from unified_vae.core.printable import printable
from unified_vae.experiment.diagnosis.history import History
from unified_vae.experiment.evaluation.figure import Figure
from unified_vae.experiment.evaluation.measure import Bench, densities_of, measure, set_up
from unified_vae.experiment.evaluation.pictures import Pictures, open_pictures
from unified_vae.experiment.evaluation.request import CompareRequest, Group
from unified_vae.experiment.run_folder import RunFolder
from unified_vae.experiment.subject.subject import Subject, find
from unified_vae.training.sheets import to_pixels

SHOWN = 8  # images in a row of the sheet

Views = npt.NDArray[np.uint8]
"""[n, height, width, 3]"""


@dataclass(frozen=True)
class Entrant:
    """One model and the images it is measured on.

    Attributes:
        label: short, different from all others'.
    """

    label: str
    subject: Subject
    pictures: Pictures


@dataclass(frozen=True)
class Result:
    """What was found of an entrant.

    Attributes:
        originals, reconstructions, samples: the pictures of the sheet.
        history: the course of its run; empty for a model without one.
    """

    entrant: Entrant
    figures: Sequence[Figure]
    originals: Views
    reconstructions: Views
    samples: Views
    history: History


def gather_entrants(request: CompareRequest, observer: Observer) -> list[Entrant]:
    """Read the models and open their images.

    Raises:
        UserError: one of them is no model, or they are not on the same images.
    """
    if len(request.targets) < 2:
        raise ConfigError("compare needs two models or more: name another run, checkpoint or model folder")
    subjects = [find(target, None, request.data, observer.notice, looks=False) for target in request.targets]
    found = []
    for label, subject in zip(labels_of(request.targets), subjects, strict=True):
        most = request.settings.max_images
        pictures = open_pictures(subject, request.data, most, observer, whole=request.data is not None)
        found.append(Entrant(label, subject, pictures))
    for other in found[1:]:
        _refuse_others(found[0], other)
    return found


def labels_of(targets: Sequence[Path]) -> list[str]:
    """The last part of each path that tells them apart; a number behind what is named twice."""
    whole = [target.resolve() for target in targets]
    depth = next((n for n in range(1, 4) if len({path.parts[-n:] for path in whole}) == len(whole)), 3)
    short = [printable("/".join(path.parts[-depth:])) for path in whole]
    return [
        f"{name} ({short[:place].count(name) + 1})" if short.count(name) > 1 else name
        for place, name in enumerate(short)
    ]


def _refuse_others(first: Entrant, other: Entrant) -> None:
    if first.pictures.channels != other.pictures.channels:
        have = " and ".join(f"{each.pictures.channels} ({each.label})" for each in (first, other))
        raise ConfigError(f"the models have images of different channels, {have}: compare those of one kind")
    if first.pictures.identity() != other.pictures.identity():
        raise ConfigError(
            f"{first.label} and {other.label} validate on different images ({first.pictures.description}; "
            f"{other.pictures.description}): name images that all are to be measured on with --data"
        )


def measure_all(
    entrants: Sequence[Entrant], request: CompareRequest, device: torch.device, observer: Observer
) -> list[Result]:
    """One after the other; what is measured of the images alone is measured once a size."""
    benches: dict[int, Bench] = {}
    found = []
    for entrant in entrants:
        size = entrant.pictures.size
        if size not in benches:
            benches[size] = set_up(entrant.pictures, device, request.settings, observer)
        found.append(_measured(entrant, benches[size]))
    return found


def _measured(entrant: Entrant, bench: Bench) -> Result:
    model = entrant.subject.model.to(bench.device)
    skipped = Group.SAMPLES in bench.settings.skip
    densities = densities_of(entrant.subject, bench.observer)
    figures = measure(model, [] if skipped else densities, bench, f" ({entrant.label})")
    images = next(entrant.pictures.batches(SHOWN))[:SHOWN].to(bench.device).float() / 255
    noise = torch.Generator().manual_seed(bench.settings.seed)
    with torch.no_grad():
        rebuilt, made = model(images).reconstruction, model.decode(densities[-1].sample(SHOWN, noise).to(bench.device))
    model.to("cpu")
    run_dir = entrant.subject.run_dir
    history = History() if run_dir is None else History.read(RunFolder(run_dir).metrics)
    return Result(entrant, figures, to_pixels(images), to_pixels(rebuilt), to_pixels(made), history)
