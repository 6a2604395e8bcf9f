"""The verb `evaluate`: measure a model the way the field measures, and keep the report beside it.

It takes no lock and writes only its own file, so it may look at a run that is training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unified_vae.config.training import Precision
from unified_vae.core.durable import probe, reason, write_text
from unified_vae.core.errors import ConfigError, EnvironmentProblem
from unified_vae.core.events import Observer
from unified_vae.experiment.environment import environment
from unified_vae.experiment.evaluation import of_factors
from unified_vae.experiment.evaluation.figure import Figure
from unified_vae.experiment.evaluation.measure import Bench, densities_of, measure, set_up
from unified_vae.experiment.evaluation.pictures import Pictures, open_pictures
from unified_vae.experiment.evaluation.request import EvaluateRequest, Group, Settings, Weights
from unified_vae.experiment.run_folder import RunFolder
from unified_vae.experiment.subject.subject import WORDS, Subject, WeightsName, find
from unified_vae.metrics.bootstrap import LEVEL
from unified_vae.training.distributed import open_runtime

FORMAT = 1
ASKED: Mapping[Weights, WeightsName] = {Weights.EMA: "ema", Weights.RAW: "raw"}
PRECISION: Precision = "fp32"  # whatever the run trained with: the figures are of the weights


@dataclass(frozen=True)
class Evaluation:
    """What was found, and where it is kept.

    Attributes:
        figures: weights -> rows.
        notes: lines to read with the table.
    """

    name: str
    images: str
    figures: Mapping[Weights, Sequence[Figure]]
    notes: Sequence[str]
    file: Path


def evaluate(request: EvaluateRequest, observer: Observer) -> Evaluation:
    """Measure, and write the report.

    Raises:
        UserError: there is no such model, no checkpoint, no images, or the report cannot be written.
    """
    subjects, notes = _subjects(request, observer)
    subject = subjects[0][1]
    file = request.file or RunFolder(subject.home).evaluation
    prove_writable(file.parent, "--json")
    with open_runtime(request.settings.device or subject.config.device, PRECISION) as runtime:
        pictures = open_pictures(subject, request.data, request.settings.max_images, observer)
        bench = set_up(pictures, runtime.device, request.settings, observer)
        figures = {weights: _measured(weights, each, bench, observer) for weights, each in subjects[:1]}
        figures |= {weights: _second(weights, each, bench, observer) for weights, each in subjects[1:]}
    evaluation = Evaluation(subject.name, pictures.description, figures, notes, file)
    about = {**described(subject, pictures, request.settings), "device": str(runtime.device)}
    rows = {weights.value: [figure.to_json() for figure in found] for weights, found in figures.items()}
    write_text(file, json.dumps({"format": FORMAT, **about, "notes": notes, "weights": rows}, indent=2) + "\n")
    return evaluation


def _subjects(request: EvaluateRequest, observer: Observer) -> tuple[list[tuple[Weights, Subject]], list[str]]:
    """The model with each of the weights asked for, and what to say of it."""

    asked: WeightsName | None = None if request.weights is None else ASKED.get(request.weights)
    subject = find(request.target, request.checkpoint, request.data, observer.notice, weights=asked, looks=False)
    has = Weights(subject.weights)
    if asked is not None:
        return [(has, subject)], []
    if subject.run_dir is None or subject.folder is not None:
        words = WORDS[subject.weights]
        if request.weights is Weights.BOTH:
            raise ConfigError(
                f"{request.target} is an exported model, which has {words} weights alone: leave --weights out"
            )
        short = " (EMA)" if has is Weights.EMA else ""
        return [(has, subject)], [f"this exported model has {words} weights{short} alone; its run has both"]
    return [(Weights.EMA, subject), (Weights.RAW, _raw_of(subject, request.data))], []


def _raw_of(subject: Subject, data: str | None) -> Subject:
    """The raw weights of the very step, whatever became the best or last one of a run that is training."""
    assert subject.run_dir is not None
    return find(subject.run_dir, str(subject.step), data, lambda _: None, weights="raw", looks=False)


def _measured(weights: Weights, subject: Subject, bench: Bench, observer: Observer) -> list[Figure]:
    """All figures of one set of weights."""
    label = ", raw weights" if weights is Weights.RAW else ""
    densities = densities_of(subject, observer) if Group.SAMPLES not in bench.settings.skip else []
    model = subject.model.to(bench.device)
    return measure(model, densities, bench, label)


def _second(weights: Weights, subject: Subject, bench: Bench, observer: Observer) -> list[Figure]:
    """Without disentanglement, whose classifiers take minutes."""
    skip = bench.settings.skip
    shorter = replace(bench, settings=replace(bench.settings, skip=skip | {Group.FACTORS}))
    why = "where both weights are measured, it is of the averaged ones alone; --weights raw measures these"
    left_out = [] if Group.FACTORS in skip else [figure.unavailable(why) for figure in of_factors.rows()]
    return [*_measured(weights, subject, shorter, observer), *left_out]


def described(subject: Subject, pictures: Pictures, settings: Settings) -> dict[str, Any]:
    """What has to be the same for two reports to be compared, and what they are of."""
    model = subject.model
    return {
        "subject": subject.name,
        "step": subject.step,
        "model": {"image_size": model.image_size, "channels": model.channels, "latents": model.latents},
        "images": {
            "description": pictures.description,
            "count": pictures.count,
            "pixels_sha256": pictures.fingerprint(),
            "contents_sha256": pictures.identity(),
        },
        "settings": {
            "samples": settings.samples,
            "draws": settings.draws,
            "skipped": sorted(group.value for group in settings.skip),
            "seed": settings.seed,
            "precision": PRECISION,
        },
        "intervals": f"{LEVEL:.0%}, bootstrap over images",
        "environment": environment(),
    }


def prove_writable(folder: Path, option: str) -> None:
    """Before any work is done.

    Raises:
        EnvironmentProblem: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe(folder)
    except OSError as problem:
        why = reason(problem)
        raise EnvironmentProblem(f"{folder} cannot be written ({why}): name another place with {option}") from problem
