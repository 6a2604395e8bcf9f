"""The README.md of a model's folder: what it is, how good it is, how it is loaded. The hub reads its first lines.

(Model cards: Mitchell et al. 2019, arXiv 1810.03993; the front matter is that of the Hugging Face Hub.)
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from unified_vae.api.pictures import grid
from unified_vae.config.loss import is_likelihood
from unified_vae.core.durable import write_bytes, write_text
from unified_vae.core.errors import ConfigError
from unified_vae.models.pretrained import LatentStats
from unified_vae.models.vae import VAE

CARD, SAMPLES = "README.md", "samples.png"
UNKNOWN = "unknown"
GRID_SAMPLES, GRID_SEED = 16, 0
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")  # of a licence
HINT = " (--data takes your own)"  # of the built-in set, for the terminal
FIGURES = {  # names in the metrics file -> words
    "psnr": ("PSNR of reconstructions", "{:.2f} dB"),
    "psnr.above_pca": ("above as many principal components", "{:+.2f} dB"),
    "sharpness": ("sharpness (1: as much fine detail as the images)", "{:.2f}"),
    "rate.nats": ("KL of an image", "{:,.1f} nats"),
    "active_units": ("active units", "{:,.0f}"),
    "bits_per_dim": ("errors and KL", "{:.3f} bits a dimension, decoded from means: no ELBO"),
}


def write_card(
    folder: Path,
    model: VAE,
    description: Mapping[str, Any],
    stats: LatentStats | None = None,
    license: str | None = None,
) -> None:
    """Write the card and a sheet of samples beside a model.

    Args:
        model: with the density that samples come from, on any device.
        description: the content of its config file.
        license: an identifier of the hub; None takes the one in the description.
    """
    picture = io.BytesIO()
    grid(model.sample(GRID_SAMPLES, torch.Generator().manual_seed(GRID_SEED))).save(picture, format="PNG")
    write_bytes(folder / SAMPLES, picture.getvalue())
    write_text(folder / CARD, card(model, description, stats, license))


def card(
    model: VAE, description: Mapping[str, Any], stats: LatentStats | None = None, license: str | None = None
) -> str:
    """The text, from what the model's config file says and nothing else.

    Raises:
        ConfigError: `license` is no identifier.
    """
    run = _part(description, "run")
    licence = license or str(run.get("license", UNKNOWN))
    if not NAME.fullmatch(licence):
        raise ConfigError(f"the licence {licence!r} is no identifier of the hub: give one such as cc-by-4.0 or other")
    parts = [
        _front_matter(licence),
        f"# {run.get('name') or 'A VAE of images'}",
        _what(model, description),
        f"![Samples]({SAMPLES})\n\n16 samples from {model.density.describe()}, none of them chosen.",
        "## Load",
        _how_to_load(),
        *_figures(run, _part(description, "loss")),
        "## Training",
        _training(run, description),
        "## Latents",
        _latents(model, stats),
        *_half_precision(description),
        "## Licence",
        _licence(licence),
    ]
    return "\n\n".join(parts) + "\n"


def _part(description: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = description.get(name)
    return part if isinstance(part, Mapping) else {}


def _front_matter(licence: str) -> str:
    tags = ("unified-vae", "vae", "variational-autoencoder", "image-generation")
    lines = [f"license: {licence}", "library_name: unified-vae", "pipeline_tag: unconditional-image-generation"]
    return "\n".join(["---", *lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _what(model: VAE, description: Mapping[str, Any]) -> str:
    side, colours = model.image_size, "grey" if model.channels == 1 else "RGB"
    family = _part(description, "model").get("family", "")
    return (
        f"A variational autoencoder ({family}) of {colours} images of {side} x {side} pixels with {model.latents:,} "
        "latents, trained with unified-vae."
    )


def _how_to_load() -> str:
    return """```python
from unified_vae import VAE

vae = VAE.from_pretrained(".")  # this folder, or the model's name on the hub
posterior = vae.encode("photo.jpg")  # posterior.mean, posterior.logvar: [1, latents]
image = vae.decode(posterior.mean)  # [1, channels, size, size] in 0..1
samples = vae.sample(8, generator=0)
```"""


def _figures(run: Mapping[str, Any], loss: Mapping[str, Any]) -> list[str]:
    found = _part(run, "validation")
    rows = [
        f"| {words} | {form.format(round(found[name], 3) + 0.0)} |"
        for name, (words, form) in FIGURES.items()
        if isinstance(found.get(name), int | float) and (name != "bits_per_dim" or is_likelihood(loss))
    ]
    if not rows:
        return []
    head = "Averaged weights, images that were not trained on, decoded from the posterior's mean."
    return ["## Figures", head, "\n".join(["| validation | |", "|---|---|", *rows])]


def _training(run: Mapping[str, Any], description: Mapping[str, Any]) -> str:
    names = _part(run, "names")
    loss = _part(description, "loss")
    rows = [
        ("data", _plain(run.get("data", UNKNOWN)).removesuffix(HINT)),
        *((f"preset: {kind}" if kind != "mode" else kind, f"`{_plain(name)}`") for kind, name in names.items()),
        ("steps", f"{run['step']:,}" if isinstance(run.get("step"), int) else UNKNOWN),
        ("loss", ", ".join(_terms(loss)) or UNKNOWN),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _terms(loss: Mapping[str, Any]) -> list[str]:
    """The terms that weigh something, beta under its own name."""
    weights = {name: term["weight"] for name, term in loss.items() if isinstance(term, Mapping) and term.get("weight")}
    return [f"{'beta' if name == 'kl' else name} {weight:g}" for name, weight in weights.items()]


def _latents(model: VAE, stats: LatentStats | None) -> str:
    drawn = f"`sample` draws latents from {model.density.describe()}"
    drawn += "." if model.density.kind == "normal" else '; `density="normal"` draws from N(0, I).'
    if stats is None:
        return drawn
    return (
        f"{drawn} Over {stats.images:,} training images the latents have the mean {stats.shift:.4g} and the standard "
        f"deviation {1 / stats.scale:.4g}: (z - {stats.shift:.4g}) * {stats.scale:.4g} is of unit variance. "
        "`latent_stats.safetensors` has mean and std of each unit."
    )


def half_precision(verdict: str) -> str:
    """The section on half precision: its title, and what an audit found."""
    return f"## Half precision\n\nMeasured on images of the run: {_plain(verdict)}."


def _half_precision(description: Mapping[str, Any]) -> list[str]:
    verdict = _part(description, "half_precision").get("verdict")
    return [] if verdict is None else [half_precision(str(verdict))]


def _licence(licence: str) -> str:
    if licence != UNKNOWN:
        return f"{licence}. Samples may look like the images that the model was trained on: see to their licence too."
    return (
        "Not stated. Who passes the model on sets it in the first lines of this file, with the licence of the images "
        "in mind: samples may look like them."
    )


def _plain(value: object) -> str:
    """Text that cannot break out of a cell of a table."""
    text = value if isinstance(value, str) else json.dumps(value)
    return " ".join(text.replace("|", "/").replace("`", "'").split())
