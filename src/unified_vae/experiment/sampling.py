"""After the export: fit what new pictures are sampled from, keep it with the model, and draw the sheet to look at.

The model is complete before this begins, and nothing here changes it.
"""

from __future__ import annotations

from pathlib import Path

import torch

from unified_vae.core.errors import DataError
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
    model = load_pretrained(folder.model, device)
    fitted = _fitted(model, config, train, observer)
    model.use_density(fitted.density)
    figures = {"log_likelihood": dict(fitted.nats), "images": fitted.images, "asked": config.density.fit}
    sheet = paint_density(model, folder.samples / SHEET, config.training.samples.count, config.seed)
    save_density(folder.model, fitted.density, figures)  # last: with it the export is complete
    return lines(fitted, sheet)


def _fitted(model: VAE, config: RunConfig, train: PackedSplit, observer: Observer) -> FittedDensity:
    """The density; N(0, I) with a note where none can be fitted, since the model is good without one."""

    def encoded(done: int, total: int) -> None:
        observer.phase("encoding training images for the latent density", done, total)

    found = posteriors(model, train, config.density.max_images, config.seed, encoded)
    try:
        return fit_density(found, config.density, config.seed, observer.phase)
    except (DataError, ArithmeticError, torch.linalg.LinAlgError) as problem:
        note = f"no latent density could be fitted ({problem}), so new pictures are sampled from N(0, I)"
        return FittedDensity(NormalDensity(model.latents), {}, 0, note)


def lines(fitted: FittedDensity, sheet: Path) -> list[str]:
    """What was fitted, what it gains, and where its samples are."""
    if fitted.note:
        return [f"{fitted.note}: {sheet}"]
    kind = fitted.density.kind
    gain = fitted.nats[kind] - fitted.nats["normal"] if fitted.nats else 0.0
    better = f", {gain:,.0f} nats an image likelier than N(0, I) for images kept out" if gain > 0 else ""
    return [f"new pictures are sampled from a latent density ({kind}{better}): {sheet}"]
