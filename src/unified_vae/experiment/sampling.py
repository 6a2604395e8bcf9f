"""After the export: fit what new pictures are sampled from, keep it with the model, and draw the sheet to look at.

The model is complete before this begins, and nothing here changes it.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch

from unified_vae.core.durable import reason
from unified_vae.data.packing.packed import PackedSplit
from unified_vae.experiment.run_config import RunConfig
from unified_vae.experiment.run_folder import RunFolder
from unified_vae.models.density.normal import NormalDensity
from unified_vae.models.pretrained import load_pretrained, save_density
from unified_vae.models.vae import VAE
from unified_vae.training.density_fit import FittedDensity, fit_density
from unified_vae.training.latents import posteriors
from unified_vae.training.observers import Observer
from unified_vae.training.sheets import paint_density

SHEET = "final-samples.png"


def add_density(
    folder: RunFolder, config: RunConfig, train: PackedSplit, device: torch.device, observer: Observer
) -> list[str]:
    """Fit the latent density of the exported model, store it, draw its samples; returns what to say of it."""
    begun = time.monotonic()
    model = load_pretrained(folder.model, device)
    fitted = _fitted(model, config, train, observer)
    seconds = time.monotonic() - begun
    model.use_density(fitted.density)
    sheet = _painted(model, folder, config, observer)
    figures = {
        "asked": config.density.model_dump(),
        "log_likelihood": dict(fitted.nats),
        "images": fitted.images,
        "note": fitted.note,
    }
    save_density(folder.model, fitted.density, figures)  # last: with it the export is complete
    return lines(fitted, sheet, seconds)


def _fitted(model: VAE, config: RunConfig, train: PackedSplit, observer: Observer) -> FittedDensity:
    """The density; N(0, I) with a note where none can be fitted, whatever the reason: the model is good without one."""

    def encoded(done: int, total: int) -> None:
        observer.phase("encoding training images for the latent density", done, total)

    if config.density.fit == "normal":
        return FittedDensity(NormalDensity(model.latents), {}, 0)
    try:
        found = posteriors(model, train, config.density.max_images, config.seed, encoded)
        return fit_density(found, config.density, config.seed, observer.phase)
    except Exception as problem:
        reason = (str(problem) or type(problem).__name__).splitlines()[0].rstrip(".")
        note = f"no latent density could be fitted ({reason}), so new pictures are sampled from N(0, I)"
        return FittedDensity(NormalDensity(model.latents), {}, 0, note)


def _painted(model: VAE, folder: RunFolder, config: RunConfig, observer: Observer) -> Path | None:
    """The sheet of samples; None where the disk does not take it, which is no reason to end without a model."""
    try:
        return paint_density(model, folder.samples / SHEET, config.training.samples.count, config.seed)
    except OSError as problem:
        observer.notice(f"{folder.samples / SHEET} cannot be written ({reason(problem)})")
    except torch.OutOfMemoryError:
        observer.notice("out of memory: no sheet of new samples; fewer need less (training.samples.count)")
    return None


def lines(fitted: FittedDensity, sheet: Path | None, seconds: float) -> list[str]:
    """What was fitted, how long it took, what it gains, and the picture to look at."""
    look = [] if sheet is None else [f"the picture to look at, new samples: {sheet.as_posix()}"]
    if fitted.density.kind == "normal":
        likeliest = f", the likeliest of {len(fitted.nats)} densities" if len(fitted.nats) > 1 else ""
        return [fitted.note or f"new pictures are sampled from N(0, I){likeliest}", *look]
    gain = fitted.nats[fitted.density.kind] - fitted.nats["normal"] if fitted.nats else 0.0
    better = f"; {gain:,.0f} nats an image likelier than N(0, I) for images kept out" if gain > 0 else ""
    said = (
        f"new pictures are sampled from {fitted.density.describe()}, fitted to the latents of {fitted.images:,} images"
    )
    return [f"{said} in {seconds:.0f} s{better}", *([fitted.note] if fitted.note else []), *look]
