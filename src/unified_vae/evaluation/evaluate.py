"""Evaluates one model, or several on the same images with paired differences, and writes the report.

It takes no lock and writes only its own files, so it may read a run that is training.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from unified_vae.analysis.diagnosis import History
from unified_vae.core.device import environment
from unified_vae.core.errors import ConfigError, EnvironmentProblem, escape_name, reason
from unified_vae.core.events import Observer
from unified_vae.core.files import probe, write_text
from unified_vae.core.run_dir import RunFolder
from unified_vae.evaluation import Group, Weights
from unified_vae.evaluation.bootstrap import LEVEL, Difference, MetricResult, paired_difference
from unified_vae.evaluation.images import EvaluationImages, open_evaluation_images
from unified_vae.evaluation.metrics import FITTED, EvaluationContext, build_context, measure
from unified_vae.inference.image_grids import draw_grid, save_png, stack_vertically, to_pixels
from unified_vae.inference.load import WEIGHTS_WORDS, LoadedModel, load_model, trained_model
from unified_vae.models.density import LatentDensity, NormalDensity
from unified_vae.training.distributed import open_runtime

FORMAT = 1
SHOWN = 8  # images in a row of the sheet
MAX_CAPTION = 70  # letters
SIZES_DIFFER = (
    "the models have different image sizes, each measured at its own: pixels of different sizes cannot be compared "
    "with one another, so there are no differences"
)

Views = npt.NDArray[np.uint8]
"""[n, height, width, 3]"""


@dataclass(frozen=True)
class Candidate:
    """A model to be measured: its weights, and the images it is measured on.

    Attributes:
        label: `ema` or `raw` of a single model; of several models short and unique.
    """

    label: str
    loaded: LoadedModel
    images: EvaluationImages


@dataclass(frozen=True)
class Evaluation:
    """What was measured, and where it is kept.

    Attributes:
        names: label -> name of the model with its step. Of one model the labels are `ema` and `raw`, its weights.
        images: in words.
        results: label -> its metrics; of several models the same ones for all.
        differences: label of each model but the first -> metric -> how it differs from the first.
        notes: lines to read with the table.
        files: what was written: `report`, and of several models `sheet` and `plot`.
    """

    names: Mapping[str, str]
    images: str
    results: Mapping[str, Sequence[MetricResult]]
    differences: Mapping[str, Mapping[str, Difference]]
    notes: Sequence[str]
    files: Mapping[str, Path]


def evaluate(
    targets: Sequence[Path],
    *,
    data: str | None = None,
    checkpoint: str | None = None,
    weights: Weights | None = None,
    samples: int | None = None,
    max_images: int | None = None,
    draws: int = 16,
    skip: Collection[Group] = (),
    inception: Path | None = None,
    report: Path | None = None,
    output: Path | None = None,
    device: str | None = None,
    seed: int = 0,
    observer: Observer,
) -> Evaluation:
    """Measure in float32, and write the report; of several models also a sheet and a plot.

    Args:
        targets: folders of runs, of their checkpoints, or of exported models.
        data: images to measure on; None takes the run's validation images, which have to be the same for all.
        checkpoint: a step, `best` or `last`; None takes the best there is.
        weights: None takes both where one model has both, and the averaged ones of several.
        samples: new images for each density; None takes as many as there are images, at most MAX_SAMPLES.
        max_images: use no more images; None uses all.
        draws: latents per image for the bounds on the likelihood.
        skip: groups of metrics to leave out.
        inception: file of Inception's weights; None looks in the cache of downloaded weights.
        report: file of the report; None is `evaluation.json` beside the run, of several `comparison.json` in `output`.
        output: folder for the files of several models; None is `comparison`.
        device: auto, cpu, ...; None as the first run had it.
        seed: of everything that is drawn: latents, patches, resamples.

    Raises:
        UserError: there is no such model, checkpoint or image, the models are not on the same images, or the files
            cannot be written.
    """
    single = len(targets) == 1
    if single and output is not None:
        raise ConfigError("--output is the folder for the files of several models: --json names the report of one")
    notes: list[str] = []
    if single:
        loaded_models, notes = _read_weights(targets[0], data, checkpoint, weights, observer)
    elif weights == "both":
        raise ConfigError("--weights both is of one model: give --weights raw, or leave it out for the averaged ones")
    else:
        open_model = partial(load_model, data=data, weights=weights, require_data=False, on_message=observer.notice)
        named = zip(unique_labels(targets), targets, strict=True)
        loaded_models = {label: open_model(target, checkpoint) for label, target in named}

    # prove that the files can be written before any work is done
    first = next(iter(loaded_models.values()))
    folder = output or Path("comparison")
    report = report or (RunFolder(first.home).evaluation if single else folder / "comparison.json")
    check_writable(report.parent, "--json" if single or report.parent != folder else "--output")
    if not single:
        check_writable(folder, "--output")

    # the images of all, then one model after the other; what depends on the images alone is measured once per size
    candidates: list[Candidate] = []
    for label, loaded in loaded_models.items():
        if single and candidates:
            images = candidates[0].images
        else:
            whole = data is not None and not single
            images = open_evaluation_images(loaded, data, max_images, observer, whole=whole)
        candidates.append(Candidate(label, loaded, images))
    reference = candidates[0]
    for candidate in candidates[1:]:
        images = candidate.images
        if images.channels != reference.images.channels:
            have = " and ".join(f"{each.images.channels} ({each.label})" for each in (reference, candidate))
            raise ConfigError(f"the models have images of different channels, {have}: compare those of one kind")
        if images.content_hash() != reference.images.content_hash():
            raise ConfigError(
                f"{reference.label} and {candidate.label} validate on different images ("
                f"{reference.images.description}; {images.description}): name images that all are to be measured on "
                "with --data"
            )
    results: dict[str, list[MetricResult]] = {}
    contexts: dict[int, EvaluationContext] = {}
    shown: dict[str, tuple[Views, Views, Views]] = {}
    with open_runtime(device or first.config.device, "fp32") as runtime:
        for candidate in candidates:
            label, images = candidate.label, candidate.images
            if images.size not in contexts:
                contexts[images.size] = build_context(
                    images, runtime.device, observer, samples=samples, draws=draws, skip=skip, inception=inception,
                    seed=seed,
                )  # fmt: skip
            context = contexts[images.size]
            if single:
                results[label] = _measure_weights(candidate, context)
            else:
                results[label], shown[label] = _measure_model(candidate, context)

    # the report
    about = {candidate.label: _describe(candidate, contexts[candidate.images.size]) for candidate in candidates}
    content: dict[str, Any] = {"format": FORMAT}
    differences: dict[str, dict[str, Difference]] = {}
    files = {"report": report}
    if not single:
        _complete(results)
    rows = {label: [result.to_json() for result in metrics] for label, metrics in results.items()}
    if single:
        content |= {**about[reference.label], "device": str(runtime.device), "notes": notes, "weights": rows}
    else:
        if len(contexts) > 1:
            notes = [SIZES_DIFFER]
        else:
            first_metrics, others = results[reference.label], list(results)[1:]
            differences = {label: compare(first_metrics, results[label]) for label in others}
        entries = {
            label: {name: asdict(difference) for name, difference in metrics.items()}
            for label, metrics in differences.items()
        }
        models = [
            {"label": label, "weights": loaded_models[label].weights, **about[label], "figures": rows[label]}
            for label in results
        ]
        content |= {"notes": notes, "reference": reference.label, "differences": entries, "models": models}
        files |= {"sheet": folder / "comparison.png", "plot": folder / "comparison-curves.png"}
    write_text(report, json.dumps(content, indent=2) + "\n")
    if not single:
        draw_sheet(files["sheet"], shown)
        _draw_plot(files["plot"], candidates, results)
    names = {candidate.label: candidate.loaded.name for candidate in candidates}
    return Evaluation(names, reference.images.description, results, differences, notes, files)


def compare(reference: Sequence[MetricResult], results: Sequence[MetricResult]) -> dict[str, Difference]:
    """Return metric -> how it differs from the reference, for all that both models have."""
    by_name = {result.name: result for result in reference}
    differences = {
        result.name: paired_difference(by_name[result.name], result) for result in results if result.name in by_name
    }
    return {name: difference for name, difference in differences.items() if difference is not None}


def check_writable(folder: Path, option: str) -> None:
    """Raise EnvironmentProblem where the folder cannot be made or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe(folder)
    except OSError as problem:
        why = reason(problem)
        raise EnvironmentProblem(f"{folder} cannot be written ({why}): choose another with {option}") from problem


# --- which models ----------------------------------------------------------------------------------------


def _read_weights(
    target: Path, data: str | None, checkpoint: str | None, weights: Weights | None, observer: Observer
) -> tuple[dict[str, LoadedModel], list[str]]:
    """One model with each of the weights asked for, and what to say of it."""
    requested = None if weights == "both" else weights
    loaded = load_model(
        target, checkpoint, data=data, weights=requested, require_data=False, on_message=observer.notice
    )
    if requested is not None:
        return {loaded.weights: loaded}, []
    if loaded.run_dir is None or loaded.export is not None:
        words = WEIGHTS_WORDS[loaded.weights]
        if weights == "both":
            raise ConfigError(f"{target} is an exported model, which has {words} weights alone: leave --weights out")
        short = " (EMA)" if loaded.weights == "ema" else ""
        return {loaded.weights: loaded}, [f"this exported model has {words} weights{short} alone; its run has both"]
    # the raw weights of the same step, whatever becomes the best or last one of a run that is training
    raw = load_model(loaded.run_dir, str(loaded.step), data=data, weights="raw", require_data=False)
    return {"ema": loaded, "raw": raw}, []


def unique_labels(targets: Sequence[Path]) -> list[str]:
    """Return the last part of each path that tells them apart; a number behind what is named twice."""
    paths = [target.resolve() for target in targets]
    depth = next((n for n in range(1, 4) if len({path.parts[-n:] for path in paths}) == len(paths)), 3)
    short = [escape_name("/".join(path.parts[-depth:])) for path in paths]
    return [
        f"{name} ({short[:index].count(name) + 1})" if short.count(name) > 1 else name
        for index, name in enumerate(short)
    ]


def _densities(loaded: LoadedModel, on_message: Callable[[str], None]) -> list[LatentDensity]:
    """N(0, I), and the density that was fitted to these very weights, where there is one."""
    fitted = loaded.model.density
    if fitted.kind == "normal":
        consequence = "So samples are drawn from N(0, I) alone."
        finished = trained_model(loaded, on_message, consequence)
        fitted = fitted if finished is None else finished.content.model.density
    normal = NormalDensity(loaded.model.latents)
    return [normal] if fitted.kind == "normal" else [normal, fitted]


# --- measuring -------------------------------------------------------------------------------------------


def _measure_weights(candidate: Candidate, context: EvaluationContext) -> list[MetricResult]:
    """One of the two weights of a model."""
    loaded, label = candidate.loaded, ", raw weights" if candidate.label == "raw" else ""
    densities = [] if Group.SAMPLES in context.skip else _densities(loaded, context.observer.notice)
    results = measure(loaded.model.to(context.device), densities, context, label)
    loaded.model.to("cpu")
    return results


def _measure_model(
    candidate: Candidate, context: EvaluationContext
) -> tuple[list[MetricResult], tuple[Views, Views, Views]]:
    """One of several models: its metrics; originals, reconstructions and samples for the sheet."""
    model = candidate.loaded.model.to(context.device)
    densities = _densities(candidate.loaded, context.observer.notice)
    measured = [] if Group.SAMPLES in context.skip else densities
    results = measure(model, measured, context, f" ({candidate.label})")
    images = next(candidate.images.batches(SHOWN))[:SHOWN].to(context.device).float() / 255
    noise = torch.Generator().manual_seed(context.seed)
    with torch.no_grad():
        rebuilt = model(images).reconstruction
        drawn = model.decode(densities[-1].sample(SHOWN, noise).to(context.device))
    model.to("cpu")
    return results, (to_pixels(images), to_pixels(rebuilt), to_pixels(drawn))


def _complete(results: Mapping[str, list[MetricResult]]) -> None:
    """Add a result without a value, and why, to each model for each metric that only others have."""
    known = {result.name: result for metrics in results.values() for result in reversed(metrics)}
    for label, metrics in results.items():
        names = {result.name for result in metrics}
        for name, result in known.items():
            if name in names:
                continue
            reason = f"{label} has no such metric"
            if name.endswith(f".{FITTED}"):
                reason = (
                    f"{label} draws new images from N(0, I) alone: no other latent density was fitted to these "
                    "weights, or none was likelier"
                )
            empty = replace(
                result, value=None, interval=None, resampled=None, images=0, resolution="", note="", missing=""
            )
            metrics.append(empty.with_missing(reason))


def _describe(candidate: Candidate, context: EvaluationContext) -> dict[str, Any]:
    """What has to be the same for two reports to be compared, and what they are of."""
    model, images = candidate.loaded.model, candidate.images
    return {
        "subject": candidate.loaded.name,
        "step": candidate.loaded.step,
        "model": {"image_size": model.image_size, "channels": model.channels, "latents": model.latents},
        "images": {
            "description": images.description,
            "count": images.count,
            "pixels_sha256": images.pixel_hash(),
            "contents_sha256": images.content_hash(),
        },
        "settings": {
            "samples": context.samples,
            "draws": context.draws,
            "skipped": sorted(context.skip),
            "seed": context.seed,
            "precision": "fp32",
        },
        "intervals": f"{LEVEL:.0%}, bootstrap over images",
        "environment": environment(),
    }


# --- pictures of several models --------------------------------------------------------------------------


def draw_sheet(path: Path, shown: Mapping[str, tuple[Views, Views, Views]]) -> None:
    """Draw the same images: originals, then each model's reconstructions; below, samples of each.

    Args:
        shown: label -> originals, reconstructions, samples.
    """
    size = max(originals.shape[1] for originals, _, _ in shown.values())
    largest = next(originals for originals, _, _ in shown.values() if originals.shape[1] == size)
    rows: list[tuple[Views, str]] = [(largest, "originals")]
    for index, words in ((1, "reconstructions"), (2, "new images")):
        rows += [(views[index], f"{label} ({views[0].shape[1]} px): {words}") for label, views in shown.items()]
    blocks = []
    for images, caption in rows:
        large = [Image.fromarray(image).resize((size, size), Image.Resampling.NEAREST) for image in images]
        short = caption if len(caption) <= MAX_CAPTION else "..." + caption[3 - MAX_CAPTION :]
        blocks.append(draw_grid(np.stack([np.asarray(image) for image in large]), len(large), short))
    save_png(stack_vertically(blocks), path)


def _draw_plot(path: Path, candidates: Sequence[Candidate], results: Mapping[str, Sequence[MetricResult]]) -> None:
    """Rate against PSNR, with the path of each run; PSNR over steps."""
    from unified_vae.report.plots import draw_comparison

    models = {}
    for candidate in candidates:
        values = {result.name: result.value for result in results[candidate.label]}
        rate, psnr = values.get("rate"), values.get("psnr.pooled")
        run_dir = candidate.loaded.run_dir
        history = History() if run_dir is None else History.read(RunFolder(run_dir).metrics)
        measured = None if rate is None or psnr is None else (rate, psnr)
        models[candidate.label] = (history.rates, measured, history.validation)
    draw_comparison(path, models)
