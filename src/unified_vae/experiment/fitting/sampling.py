"""After the export: fit what new pictures are sampled from, keep it with the model, and draw the sheet to look at.

Statistics of the latents and the model's card are written here as well. The model is complete before this begins, and
nothing here changes it.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch

from unified_vae.api.card import write_card
from unified_vae.config.run import RunConfig
from unified_vae.core.durable import reason
from unified_vae.core.posterior import DiagonalGaussian
from unified_vae.data.dataset import PackedSplit
from unified_vae.experiment.run_folder import RunFolder
from unified_vae.models.density.normal import NormalDensity
from unified_vae.models.latent_stats import measure
from unified_vae.models.pretrained import CONFIG, load_pretrained, save_density, save_stats
from unified_vae.models.vae import VAE
from unified_vae.training.density_fit import FittedDensity, fit_density
from unified_vae.training.latents import posteriors, views
from unified_vae.training.observers import Observer
from unified_vae.training.sheets import paint_density

SHEET = "final-samples.png"


def add_density(
    folder: RunFolder, config: RunConfig, train: PackedSplit, device: torch.device, observer: Observer
) -> list[str]:
    """Fit the latent density of the exported model, store it, draw its samples; returns what to say of it."""
    begun = time.monotonic()
    model = load_pretrained(folder.model, device)
    found = _encoded(model, config, train, observer)
    mirror = _mirrored(model, config, train, found, observer)
    fitted = _fitted(model, config, found, mirror, observer)
    seconds = time.monotonic() - begun
    model.use_density(fitted.density)
    sheet = _painted(model, folder, config, observer)
    _described(folder, model, found, observer)
    figures = {
        "asked": config.density.model_dump(),
        "log_likelihood": dict(fitted.nats),
        "images": fitted.images,
        "note": fitted.note,
    }
    save_density(folder.model, fitted.density, figures)  # last: with it the export is complete
    return lines(fitted, sheet, seconds)


Encoded = DiagonalGaussian | Exception
"""Posteriors of training images, or why there are none: the model is good without them."""


def _encoded(model: VAE, config: RunConfig, train: PackedSplit, observer: Observer, mirrored: bool = False) -> Encoded:
    of = "mirrored training images" if mirrored else "training images"

    def encoded(done: int, total: int) -> None:
        observer.phase(f"encoding {of} for the latent density", done, total)

    try:
        return posteriors(model, train, config.density.max_images, config.seed, encoded, mirrored)
    except Exception as problem:
        return problem


def _mirrored(model: VAE, config: RunConfig, train: PackedSplit, found: Encoded, observer: Observer) -> Encoded | None:
    """The same of the mirror images, where the density is to know them."""
    wanted = config.density.fit != "normal" and not isinstance(found, Exception)
    if wanted and views(model, train, config.density.max_images, config.data.augment) > 1:
        return _encoded(model, config, train, observer, mirrored=True)
    return None


def _fitted(model: VAE, config: RunConfig, found: Encoded, mirror: Encoded | None, observer: Observer) -> FittedDensity:
    """The density; N(0, I) with a note where none can be fitted, whatever the reason: the model is good without one."""
    if config.density.fit == "normal":
        return FittedDensity(NormalDensity(model.latents), {}, 0)
    try:
        seen = [each for each in (found, mirror) if each is not None]
        means, logvars = zip(*(_numbers(each) for each in seen), strict=True)
        both = DiagonalGaussian(torch.cat(means), torch.cat(logvars))
        return fit_density(both, config.density, config.seed, observer.phase, len(seen))
    except Exception as problem:
        note = f"no latent density could be fitted ({_words(problem)}), so new pictures are sampled from N(0, I)"
        return FittedDensity(NormalDensity(model.latents), {}, 0, note)


def _numbers(found: Encoded) -> tuple[torch.Tensor, torch.Tensor]:
    """Means and log variances; raises what kept them from being computed."""
    if isinstance(found, Exception):
        raise found
    return found.mean, found.logvar


def _described(folder: RunFolder, model: VAE, found: Encoded, observer: Observer) -> None:
    """Statistics and card beside the model; a notice where they cannot be had, whatever the reason, for the same."""
    stats = None
    try:
        if isinstance(found, Exception):
            raise found
        stats = measure(found)
        save_stats(folder.model, stats)
    except Exception as problem:
        observer.notice(f"the model has no statistics of its latents ({_words(problem)})")
    try:
        description = json.loads((folder.model / CONFIG).read_text(encoding="utf-8"))
        write_card(folder.model, model, description, stats)
    except Exception as problem:
        observer.notice(f"the model has no card ({_words(problem)})")


def _words(problem: Exception) -> str:
    return (str(problem) or type(problem).__name__).splitlines()[0].rstrip(".")


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
    better = f"; {gain:,.0f} nats an image likelier than N(0, I) for images kept out" if gain >= 0.5 else ""
    said = (
        f"new pictures are sampled from {fitted.density.describe()}, fitted to the latents of {fitted.images:,} images"
    )
    return [f"{said} in {seconds:.0f} s{better}", *([fitted.note] if fitted.note else []), *look]
