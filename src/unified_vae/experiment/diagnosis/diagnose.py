"""The verb `diagnose`: look at a run's images through its averaged weights, and name what ails it.

It takes no lock and writes only its own two files, so it may look at a run that is training.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unified_vae.core.durable import write_text
from unified_vae.core.errors import DataError, EnvironmentProblem
from unified_vae.core.events import Observer
from unified_vae.data.batches import gather
from unified_vae.data.dataset import DataSets, PackedSplit
from unified_vae.experiment.diagnosis import preflight
from unified_vae.experiment.diagnosis.cause import Diagnosis, Row
from unified_vae.experiment.diagnosis.history import History
from unified_vae.experiment.diagnosis.pca_line import PCALine
from unified_vae.experiment.diagnosis.remedy import Remedy, Situation, remedy
from unified_vae.experiment.run_folder import RunFolder
from unified_vae.experiment.subject.images import open_images, refuse_other_channels
from unified_vae.experiment.subject.subject import Subject, find
from unified_vae.metrics.images import DETAIL
from unified_vae.models.vae import VAE
from unified_vae.training.distributed import Runtime, open_runtime
from unified_vae.training.random import fixed_noise
from unified_vae.training.sheets import to_pixels
from unified_vae.training.validation import MetricSums, reconstruct_batches

BATCH = 64  # images at a time
SHOWN = 4  # images of each strip
FORMAT = 1


@dataclass(frozen=True)
class DiagnoseRequest:
    """What is asked for.

    Attributes:
        target: a run's folder, a checkpoint's in it, or an exported model's.
        checkpoint: a step, `best` or `last`; None takes the best there is.
        data: other images than the run's; needed for a model without its run.
        device: auto, cpu, ...; None as the run had it.
        output: folder for the two files; None is the run's.
    """

    target: Path
    checkpoint: str | None = None
    data: str | None = None
    device: str | None = None
    output: Path | None = None


@dataclass(frozen=True)
class Views:
    """What the picture shows beside the diagnosis.

    Attributes:
        kl_per_unit: nats, descending.
        spectrum: power by frequency.
        strips: title -> images in a row, uint8 [height, width, 3] each.
    """

    kl_per_unit: Sequence[float]
    spectrum: Mapping[str, Sequence[float]]
    strips: Mapping[str, Sequence[np.ndarray]]


@dataclass(frozen=True)
class Report:
    """What was found, and where it is kept."""

    name: str
    diagnosis: Diagnosis
    remedy: Remedy
    figures: Sequence[tuple[str, str]]
    rows: Sequence[Row]
    file: Path
    picture: Path


def diagnose(request: DiagnoseRequest, observer: Observer) -> Report:
    """Measure, decide, write.

    Raises:
        UserError: there is no such run, no checkpoint, or the images are gone.
    """
    from unified_vae.report.plots import draw_diagnosis

    subject = find(request.target, request.checkpoint, request.data, observer.notice)
    folder = RunFolder(_writable(request.output or subject.home))
    training = subject.config.training
    with open_runtime(request.device or subject.config.device, training.precision) as runtime:
        data = _images(subject, request.data, observer)
        model = subject.model.to(runtime.device)
        observer.phase("looking at the validation images", 0, None)
        seen = look(model, data.validation, runtime)
        observer.phase("looking at as many training images", 0, None)
        learned = look(model, data.train, runtime, len(data.validation))
        found = _found(subject, data, seen, learned, _line(subject, data, request.data, runtime))
        views = _views(subject, model, data.validation, seen, found, runtime)
    cure = remedy(found, _situation(subject, request.data, data))
    content = _content(subject, found, cure, views)
    write_text(folder.diagnosis, json.dumps(content, indent=2) + "\n")
    rows, figures = found.evidence(), _figures(found, seen)
    summary = next((row.figures for row in rows if row.cause == found.cause), found.figures())
    draw_diagnosis(folder.diagnosis_picture, content, summary, DETAIL, views.strips)
    return Report(subject.name, found, cure, figures, rows, folder.diagnosis, folder.diagnosis_picture)


# --- looking ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """What one pass saw: the sums, and the mean squared error of each image."""

    measured: MetricSums
    errors: Tensor


def look(model: VAE, split: PackedSplit, runtime: Runtime, at_most: int | None = None) -> Look:
    """Reconstruct the images of a split, or the first `at_most` of it, which are in no order (of content hashes)."""
    measured, errors = MetricSums.empty(model, runtime.device, runtime.accumulation_dtype), []
    for output, images in reconstruct_batches(model, _pieces(split, at_most), runtime):
        measured.add(output, images)
        errors.append((output.reconstruction.clamp(0, 1) - images).square().flatten(1).mean(1).cpu())
    return Look(measured, torch.cat(errors))


def _pieces(split: PackedSplit, at_most: int | None) -> Iterator[Tensor]:
    numbers = np.arange(min(len(split), len(split) if at_most is None else at_most))
    return (gather(split, numbers[start : start + BATCH]) for start in range(0, len(numbers), BATCH))


def _images(subject: Subject, source: str | None, observer: Observer) -> DataSets:
    """The images as the run opened them, or others at the same size.

    Raises:
        DataError: they are gone, or of other channels than the model.
    """
    try:
        data = open_images(subject, source, observer, max_images=subject.config.data.max_images)
    except DataError as problem:
        if source is not None:
            raise
        raise DataError(f"{problem} A diagnosis looks at the run's images: give their place with --data.") from problem
    refuse_other_channels(data, subject)
    before = subject.record.data["fingerprint"] if subject.record else data.fingerprint
    if before != data.fingerprint:
        observer.notice("these are not the images that the run was trained on: some may be in both of its sides")
    return data


def _line(subject: Subject, data: DataSets, source: str | None, runtime: Runtime) -> PCALine:
    """What linear maps reach: as the run's own pre-flight found, or computed now for other images."""
    if subject.record is not None and source is None:
        flight = preflight.Preflight.from_json(subject.record.preflight)
    else:
        flight, _ = preflight.fly(subject.config, data, runtime.device)
    history = History() if subject.run_dir is None else _history(subject)
    return PCALine.from_json(flight.to_json(flight.effective_beta(subject.config.loss.kl, history.beta)))


def _found(subject: Subject, data: DataSets, seen: Look, learned: Look, line: PCALine) -> Diagnosis:
    history = None if subject.run_dir is None else _history(subject)
    mse = subject.terms.get("mse")
    sigma = history.sigma if history is not None and history.sigma is not None else mse and mse**0.5
    beta = history.beta if history is not None and history.beta is not None else subject.config.loss.kl.weight
    values = seen.measured.values()
    return Diagnosis(
        psnr=values["psnr"],
        mean_image_psnr=values["psnr.mean_image"],
        rate=values["rate.nats"],
        active_units=round(values["active_units"]),
        latents=subject.model.latents,
        images=len(data.validation),
        training_psnr=learned.measured.images.psnr(),
        sharpness=values["sharpness"],
        gap=values["posterior.gap"],
        pixel_share=subject.pixel_share(),
        beta=beta,
        sigma=sigma if sigma is not None else 10 ** (-values["psnr"] / 20),
        history=history,
        line=line,
    )


def _history(subject: Subject) -> History:
    """The whole course for the best and the last weights; up to its step for an earlier checkpoint."""
    assert subject.run_dir is not None
    known = subject.state is None or subject.step in (subject.state.step, subject.state.best_step)
    return History.read(RunFolder(subject.run_dir).metrics, None if known else subject.step)


def _situation(subject: Subject, source: str | None, data: DataSets) -> Situation:
    config = subject.config
    if source is not None:
        config = config.replace(**{"data.source": source})
    names = subject.record.names if subject.record else {}
    return Situation(config, subject.run_dir, names, len(data.train), _is_over(subject))


def _is_over(subject: Subject) -> bool:
    if subject.state is None or subject.record is None:
        return True
    training = subject.config.training
    total = training.epochs * subject.record.steps_per_epoch
    return subject.state.stopped_early or subject.state.step >= min(total, training.max_steps or total)


# --- telling ---------------------------------------------------------------------------------------------


@torch.no_grad()
def _views(subject: Subject, model: VAE, split: PackedSplit, seen: Look, found: Diagnosis, runtime: Runtime) -> Views:
    """Everything that the picture shows."""
    order = seen.errors.argsort().numpy()
    middle = max(0, len(order) // 2 - SHOWN // 2)
    noise = fixed_noise(subject.config.seed, "sample sheet", 2 * SHOWN, model.latents, runtime.device)
    return Views(
        kl_per_unit=sorted(seen.measured.latents.kl_per_unit().tolist(), reverse=True),
        spectrum=seen.measured.spectrum.radial(),
        strips={
            "median images: original, reconstruction": _pairs(model, split, order[middle : middle + SHOWN], runtime),
            "worst images: original, reconstruction": _pairs(model, split, order[::-1][:SHOWN], runtime),
            "drawn from N(0, I)": list(to_pixels(model.decode(noise))),
        },
    )


def _pairs(model: VAE, split: PackedSplit, numbers: np.ndarray, runtime: Runtime) -> list[np.ndarray]:
    output, images = next(iter(reconstruct_batches(model, [gather(split, numbers)], runtime)))
    pairs = torch.stack([images, output.reconstruction], dim=1).flatten(0, 1)
    return list(to_pixels(pairs))


def _figures(found: Diagnosis, seen: Look) -> list[tuple[str, str]]:
    """(label, text) of this model, in words."""
    values = seen.measured.values()
    assert found.line is not None and found.training_psnr is not None
    return [
        (
            "PSNR",
            f"{found.psnr:.2f} dB on {found.images:,} validation images, {found.training_psnr:.2f} dB on training",
        ),
        ("mean image", f"{found.mean_image_psnr:.2f} dB: what no latent at all would reach"),
        (
            "PCA line",
            f"{found.line.psnr:.2f} dB: {found.latents} components ({found.psnr - found.line.psnr:+.2f} dB here)",
        ),
        ("sharpness", f"{values['sharpness']:.2f} of the detail's power (1 is as sharp as the originals)"),
        ("rate", f"{found.rate:.4g} nats an image, {values['posterior.information']:.4g} of them about which image"),
        ("units", f"{found.active_units} of {found.latents} active"),
        ("q(z) to N(0, I)", f"{values['posterior.gap']:.3g} nats: what draws from the prior miss"),
        (
            "beta",
            f"{found.beta:.4g}" + ("" if found.sigma is None else f", sigma {found.sigma:.4f} of the pixel range"),
        ),
    ]


def _content(subject: Subject, found: Diagnosis, cure: Remedy, views: Views) -> dict[str, Any]:
    """The file: cause, cure, evidence and all figures."""
    figures = {name: value for name, value in asdict(found).items() if isinstance(value, int | float) or value is None}
    return {
        "format": FORMAT,
        "subject": subject.name,
        "step": subject.step,
        "cause": found.cause,
        "advice": cure.advice,
        "command": cure.command,
        "evidence": [asdict(row) for row in found.evidence()],
        "figures": figures,
        "line": None if found.line is None else asdict(found.line),
        "kl_per_unit": list(views.kl_per_unit),
        "spectrum": views.spectrum,
        "path": [] if found.history is None else [list(point) for point in found.history.path],
    }


def _writable(folder: Path) -> Path:
    """Prove it before any work is done.

    Raises:
        EnvironmentProblem: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        RunFolder(folder).prepare()
    except (OSError, EnvironmentProblem) as problem:
        raise EnvironmentProblem(f"{folder} cannot be written: give another folder with --output") from problem
    return folder
