"""The verb `diagnose`: measures a run's images through its averaged weights, and names the cause of its faults.

It takes no lock and writes only its own two files, so it may read a run that is training.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unified_vae.analysis.diagnosis import Diagnosis, History, PCALine
from unified_vae.analysis.preflight import Preflight, run_preflight
from unified_vae.analysis.recommendation import Recommendation, RunContext, recommend
from unified_vae.core.errors import EnvironmentProblem
from unified_vae.core.events import Observer
from unified_vae.core.files import write_text
from unified_vae.core.rng import fixed_noise
from unified_vae.core.run_dir import RunFolder
from unified_vae.data.batches import gather
from unified_vae.data.dataset import PackedSplit
from unified_vae.inference.image_grids import to_pixels
from unified_vae.inference.image_set import open_matching_images
from unified_vae.inference.load import load_model
from unified_vae.metrics.images import DETAIL, squared_errors
from unified_vae.models.vae import VAE
from unified_vae.training.distributed import Runtime, open_runtime
from unified_vae.training.validation import MetricSums, reconstruct_batches

BATCH_SIZE = 64
SHOWN = 4  # images of each strip
FORMAT = 1


@dataclass(frozen=True)
class Report:
    """What `diagnose` measured, and where it is kept.

    Attributes:
        facts: (label, text) of this model.
        file, picture: diagnosis.json and diagnosis.png.
    """

    name: str
    diagnosis: Diagnosis
    recommendation: Recommendation
    facts: list[tuple[str, str]]
    file: Path
    picture: Path


def diagnose(
    target: Path,
    *,
    checkpoint: str | None = None,
    data: str | None = None,
    device: str | None = None,
    output: Path | None = None,
    observer: Observer,
) -> Report:
    """Measure, decide, write.

    Args:
        target: a run's folder, a checkpoint's in it, or an exported model's.
        checkpoint: a step, `best` or `last`; None takes the best there is.
        data: other images than the run's; needed for a model without its run.
        device: auto, cpu, ...; None as the run had it.
        output: folder for the two files; None is the run's.

    Raises:
        UserError: there is no such run, no checkpoint, or the images are gone.
    """
    from unified_vae.report.plots import draw_diagnosis

    loaded = load_model(target, checkpoint, data=data, on_message=observer.notice)
    config, folder = loaded.config, RunFolder(output or loaded.home)
    try:
        folder.root.mkdir(parents=True, exist_ok=True)
        folder.prepare()
    except (OSError, EnvironmentProblem) as problem:
        message = f"{folder.root} cannot be written: give another folder with --output"
        raise EnvironmentProblem(message) from problem

    # learning curves: all for the best and the last weights, up to its step for an earlier checkpoint
    history = None
    if loaded.run_dir is not None:
        is_known = loaded.progress is None or loaded.step in (loaded.progress.step, loaded.progress.best_step)
        history = History.read(RunFolder(loaded.run_dir).metrics, None if is_known else loaded.step)

    with open_runtime(device or config.device, config.training.precision) as runtime:
        images = open_matching_images(loaded, data, observer, max_images=config.data.max_images)
        if loaded.record is not None and loaded.record.data["fingerprint"] != images.fingerprint:
            observer.notice("these are not the images that the run was trained on: some may be in both of its splits")
        model, validation = loaded.model.to(runtime.device), images.validation
        observer.phase("measuring the validation images", 0, None)
        sums, errors = _measure(model, validation, len(validation), runtime)
        observer.phase("measuring as many training images", 0, None)
        training_sums, _ = _measure(model, images.train, len(validation), runtime)

        # what linear maps reach: from the run's own preflight, or computed now for other images
        if loaded.record is not None and data is None:
            preflight = Preflight.from_json(loaded.record.preflight)
        else:
            preflight, _ = run_preflight(config, images, runtime.device)
        last_beta = None if history is None else history.beta
        line = PCALine.from_json(preflight.to_json(preflight.effective_beta(config.loss.kl, last_beta)))

        metrics, sigma = sums.values(), None if history is None else history.sigma
        if sigma is None:
            mse = loaded.terms.get("mse")
            sigma = mse**0.5 if mse else 10 ** (-metrics["psnr"] / 20)
        diagnosis = Diagnosis.from_metrics(
            metrics,
            loaded.model.latents,
            images=len(validation),
            training_psnr=training_sums.images.psnr(),
            pixel_share=loaded.config.loss.pixel_share(loaded.terms),
            beta=config.loss.kl.weight if last_beta is None else last_beta,
            sigma=sigma,
            history=history,
            line=line,
        )
        order = errors.argsort().numpy()
        middle = max(0, len(order) // 2 - SHOWN // 2)
        noise = fixed_noise(config.seed, "sample sheet", 2 * SHOWN, model.latents, runtime.device)
        with torch.no_grad():
            samples = list(to_pixels(model.decode(noise)))
        strips = {
            "median images: original, reconstruction": _pairs(model, validation, order[middle:][:SHOWN], runtime),
            "worst images: original, reconstruction": _pairs(model, validation, order[::-1][:SHOWN], runtime),
            "drawn from N(0, I)": samples,
        }

    # what to do, in terms of this run
    record, state, finished = loaded.record, loaded.progress, True
    if state is not None and record is not None:
        total = config.training.epochs * record.steps_per_epoch
        finished = state.stopped_early or state.step >= min(total, config.training.max_steps or total)
    source = config if data is None else config.replace(**{"data.source": data})
    names = record.names if record else {}
    recommendation = recommend(diagnosis, RunContext(source, loaded.run_dir, names, len(images.train), finished))

    # the files
    plain = {name: value for name, value in asdict(diagnosis).items() if isinstance(value, int | float | None)}
    content = {
        "format": FORMAT,
        "subject": loaded.name,
        "step": loaded.step,
        "cause": diagnosis.cause,
        "advice": recommendation.advice,
        "command": recommendation.command,
        "evidence": [evidence.to_json() for evidence in diagnosis.evidence()],
        "figures": {name: value for name, value in plain.items() if name not in ("history", "line")},
        "line": asdict(line),
        "kl_per_unit": sorted(sums.latents.kl_per_unit().tolist(), reverse=True),
        "spectrum": sums.spectrum.radial(),
        "path": [] if history is None else [list(point) for point in history.path],
    }
    write_text(folder.diagnosis, json.dumps(content, indent=2) + "\n")
    draw_diagnosis(folder.diagnosis_picture, content, diagnosis.summary(), DETAIL, strips)
    facts = _facts(diagnosis, line, metrics)
    return Report(loaded.name, diagnosis, recommendation, facts, folder.diagnosis, folder.diagnosis_picture)


def _measure(model: VAE, split: PackedSplit, limit: int, runtime: Runtime) -> tuple[MetricSums, Tensor]:
    """Reconstruct the first images of a split, which are in no order (of content hashes); the error of each image."""
    numbers = np.arange(min(len(split), limit))
    batches = (gather(split, numbers[start : start + BATCH_SIZE]) for start in range(0, len(numbers), BATCH_SIZE))
    sums, errors = MetricSums.empty(model, runtime.device, runtime.accumulation_dtype), []
    for output, images in reconstruct_batches(model, batches, runtime):
        sums.add(output, images)
        errors.append(squared_errors(output.reconstruction, images).cpu())
    return sums, torch.cat(errors)


def _pairs(model: VAE, split: PackedSplit, numbers: np.ndarray, runtime: Runtime) -> list[np.ndarray]:
    output, images = next(iter(reconstruct_batches(model, [gather(split, numbers)], runtime)))
    return list(to_pixels(torch.stack([images, output.reconstruction], dim=1).flatten(0, 1)))


def _facts(model: Diagnosis, line: PCALine, metrics: dict[str, float]) -> list[tuple[str, str]]:
    """(label, text) of a model, in words."""
    psnr = f"{model.psnr:.2f} dB on {model.images:,} validation images, {model.training_psnr:.2f} dB on training"
    information = f"{metrics['posterior.information']:.4g} of them about which image"
    sigma = "" if model.sigma is None else f", sigma {model.sigma:.4f} of the pixel range"
    return [
        ("PSNR", psnr),
        ("mean image", f"{model.mean_image_psnr:.2f} dB: what no latent at all would reach"),
        ("PCA line", f"{line.psnr:.2f} dB: {model.latents} components ({model.psnr - line.psnr:+.2f} dB here)"),
        ("sharpness", f"{model.sharpness:.2f} of the detail's power (1 is as sharp as the originals)"),
        ("rate", f"{model.rate:.4g} nats per image, {information}"),
        ("units", f"{model.active_units} of {model.latents} active"),
        ("q(z) to N(0, I)", f"{model.gap:.3g} nats: what draws from the prior miss"),
        ("beta", f"{model.beta:.4g}{sigma}"),
    ]
