"""Save a model's folder with its card, and exchange it with the Hugging Face Hub.

The card (README.md) says what the model is, how good it is and how it is loaded; the hub reads its first lines.
(Model cards: Mitchell et al. 2019, arXiv 1810.03993; the front matter is that of the hub.)
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from safetensors import SafetensorError

from unified_vae.config.loss import is_likelihood
from unified_vae.config.model import ModelConfig
from unified_vae.core.errors import ConfigError, EnvironmentProblem, UserError, reason
from unified_vae.core.files import write_bytes, write_text
from unified_vae.inference.image_grids import grid
from unified_vae.models.pretrained import (
    CONFIG,
    DENSITY,
    LATENT_STATS,
    LatentStats,
    save_density,
    save_pretrained,
    save_stats,
)
from unified_vae.models.vae import VAE

CARD, SAMPLES = "README.md", "samples.png"
FILES = [CONFIG, "*.safetensors", CARD, SAMPLES]
"""What a model is made of: nothing else is downloaded."""
UNKNOWN = "unknown"
GRID_SAMPLES, GRID_SEED = 16, 0
LICENSE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")
HINT = " (--data takes your own)"  # of the built-in set, for the terminal
WRITTEN_ANEW = ("format", "model", DENSITY, LATENT_STATS)
SHAPE = ("kind", "latents", "sizes")  # of the density's entry, written anew likewise
FIGURES = {  # names in the metrics file -> words
    "psnr": ("PSNR of reconstructions", "{:.2f} dB"),
    "psnr.above_pca": ("above as many principal components", "{:+.2f} dB"),
    "sharpness": ("sharpness (1: as much fine detail as the images)", "{:.2f}"),
    "rate.nats": ("KL of an image", "{:,.1f} nats"),
    "active_units": ("active units", "{:,.0f}"),
    "bits_per_dim": ("errors and KL", "{:.3f} bits a dimension, decoded from means: no ELBO"),
}
HOW_TO_LOAD = """```python
from unified_vae import VAE

vae = VAE.from_pretrained(".")  # this folder, or the model's name on the hub
posterior = vae.encode("photo.jpg")  # posterior.mean, posterior.logvar: [1, latents]
image = vae.decode(posterior.mean)  # [1, channels, size, size] in 0..1
samples = vae.sample(8, generator=0)
```"""


# --- the folder ------------------------------------------------------------------------------------------


def save(
    folder: Path,
    model: VAE,
    config: ModelConfig,
    description: Mapping[str, Any],
    stats: LatentStats | None,
    background: str,
) -> Path:
    """Write everything that `from_pretrained` reads, and the card; returns `folder`.

    Raises:
        EnvironmentProblem: the folder cannot be written.
        ConfigError: the license in the description is no identifier, or `folder` is something else's; nothing was
            written.
    """
    card(model, description, stats)  # a wrong license fails before anything is written
    _check_replaceable(folder)
    about = {name: value for name, value in description.items() if name not in WRITTEN_ANEW}
    of_density = {name: value for name, value in description.get(DENSITY, {}).items() if name not in SHAPE}
    try:
        save_pretrained(folder, config, model.state_dict(), {**about, "background": background})
        if stats is not None:
            save_stats(folder, stats)
        save_density(folder, model.density, of_density)
        write_card(folder, model, {**description, "model": config.model_dump()}, stats)
    except (OSError, SafetensorError) as error:
        raise EnvironmentProblem(
            f"the model cannot be written to {folder} ({reason(error)}). Free space, or name another folder."
        ) from error
    return folder


def _check_replaceable(folder: Path) -> None:
    """Raise ConfigError where the folder is not a model's and a file in it would be written over."""
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        content = None
    present = next((name for name in (CONFIG, CARD) if (folder / name).exists()), None)
    if (folder / "checkpoints").exists():
        what = "is the folder of a run"
    elif present is None or (isinstance(content, dict) and {"format", "model"} <= content.keys()):
        return  # nothing of these names is there, or a model of any version
    else:
        what = f"holds a {present} that is no model's"
    raise ConfigError(f"{folder} {what}, and nothing in it was changed: save the model to a folder of its own")


# --- the card --------------------------------------------------------------------------------------------


def write_card(
    folder: Path,
    model: VAE,
    description: Mapping[str, Any],
    stats: LatentStats | None = None,
    license: str | None = None,
) -> None:
    """Write the card and a grid of samples beside a model.

    Args:
        model: with the density that samples come from, on any device.
        description: the content of its config file.
        license: an identifier of the hub; None takes the one in the description.
    """
    image = io.BytesIO()
    grid(model.sample(GRID_SAMPLES, torch.Generator().manual_seed(GRID_SEED))).save(image, format="PNG")
    write_bytes(folder / SAMPLES, image.getvalue())
    write_text(folder / CARD, card(model, description, stats, license))


def card(
    model: VAE, description: Mapping[str, Any], stats: LatentStats | None = None, license: str | None = None
) -> str:
    """The text, from what the model's config file says and nothing else.

    Raises:
        ConfigError: `license` is no identifier.
    """

    def part(owner: Mapping[str, Any], name: str) -> Mapping[str, Any]:
        value = owner.get(name)
        return value if isinstance(value, Mapping) else {}

    run, loss, metrics = (
        part(description, "run"),
        part(description, "loss"),
        part(part(description, "run"), "validation"),
    )
    license = license or str(run.get("license", UNKNOWN))
    if not LICENSE_NAME.fullmatch(license):
        raise ConfigError(f"the license {license!r} is no identifier of the hub: give one such as cc-by-4.0 or other")

    # What the hub reads, and what the model is.
    tags = ("unified-vae", "vae", "variational-autoencoder", "image-generation")
    front = [f"license: {license}", "library_name: unified-vae", "pipeline_tag: unconditional-image-generation"]
    family, side = part(description, "model").get("family", ""), model.image_size
    colors, source = "gray" if model.channels == 1 else "RGB", model.density.describe()
    summary = (
        f"A variational autoencoder ({family}) of {colors} images of {side} x {side} pixels with {model.latents:,} "
        "latents, trained with unified-vae."
    )
    parts = [
        "\n".join(["---", *front, "tags:", *(f"- {tag}" for tag in tags), "---"]),
        f"# {run.get('name') or 'A VAE of images'}",
        summary,
        f"![Samples]({SAMPLES})\n\n{GRID_SAMPLES} samples from {source}, none of them chosen.",
        "## Load",
        HOW_TO_LOAD,
    ]

    # How good it is. Of a mixed loss, bits per dimension would be no bound on a likelihood.
    rows = [
        f"| {words} | {form.format(round(metrics[name], 3) + 0.0)} |"
        for name, (words, form) in FIGURES.items()
        if isinstance(metrics.get(name), int | float) and (name != "bits_per_dim" or is_likelihood(loss))
    ]
    if rows:
        head = "Averaged weights, images that were not trained on, decoded from the posterior's mean."
        parts += ["## Figures", head, "\n".join(["| validation | |", "|---|---|", *rows])]

    # How it was trained: the terms that weigh something, beta under its own name.
    weights = {name: term["weight"] for name, term in loss.items() if isinstance(term, Mapping) and term.get("weight")}
    terms = [f"{'beta' if name == 'kl' else name} {weight:g}" for name, weight in weights.items()]
    facts = [
        ("data", table_cell(run.get("data", UNKNOWN)).removesuffix(HINT)),
        *(
            (f"preset: {kind}" if kind != "mode" else kind, f"`{table_cell(name)}`")
            for kind, name in part(run, "names").items()
        ),
        ("steps", f"{run['step']:,}" if isinstance(run.get("step"), int) else UNKNOWN),
        ("loss", ", ".join(terms) or UNKNOWN),
    ]
    parts += ["## Training", "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts)])]

    # What its latents are.
    text = f"`sample` draws latents from {source}"
    text += "." if model.density.kind == "normal" else '; `density="normal"` draws from N(0, I).'
    if stats is not None:
        text += (
            f" Over {stats.images:,} training images the latents have the mean {stats.shift:.4g} and the standard "
            f"deviation {1 / stats.scale:.4g}: (z - {stats.shift:.4g}) * {stats.scale:.4g} is of unit variance. "
            "`latent_stats.safetensors` has mean and std of each unit."
        )
    parts += ["## Latents", text]
    verdict = part(description, "half_precision").get("verdict")
    if verdict is not None:
        parts.append(half_precision(str(verdict)))

    # Whose it is.
    if license != UNKNOWN:
        text = f"{license}. Samples may look like the images that the model was trained on: see to their license too."
    else:
        text = (
            "Not stated. Who passes the model on sets it in the first lines of this file, with the license of the "
            "images in mind: samples may look like them."
        )
    return "\n\n".join([*parts, "## License", text]) + "\n"


def half_precision(verdict: str) -> str:
    """The section on half precision: its title, and what an audit found."""
    return f"## Half precision\n\nMeasured on images of the run: {table_cell(verdict)}."


def table_cell(value: object) -> str:
    """Text that cannot break out of a cell of a table."""
    text = value if isinstance(value, str) else json.dumps(value)
    return " ".join(text.replace("|", "/").replace("`", "'").split())


# --- the hub ---------------------------------------------------------------------------------------------


class Pushable(Protocol):
    """A model that can be uploaded."""

    def save_pretrained(self, folder: str | Path, license: str | None = None) -> object:
        """Write the model's folder."""


def download(repo_id: str, **options: Any) -> Path:
    """The folder of a model of the hub, in the hub's cache.

    Args:
        options: `revision`, `token`, `cache_dir`, `force_download`, `local_files_only` of snapshot_download.

    Raises:
        EnvironmentProblem: there is no such model, the hub cannot be reached, or huggingface_hub is not installed.
    """
    hub = _library()
    try:
        return Path(hub.snapshot_download(repo_id, allow_patterns=FILES, **options))
    except (hub.errors.HfHubHTTPError, hub.errors.HFValidationError, OSError) as error:
        raise EnvironmentProblem(
            f"the model {repo_id} cannot be had from the hub ({_first_line(error)}). Check its name, the network and "
            "your token; a folder of this machine is named by its path."
        ) from error


def push(vae: Pushable, repo_id: str, license: str | None, **options: Any) -> str:
    """Upload a model through the hub's own mixin; returns the address of the commit.

    Raises:
        EnvironmentProblem: the hub refuses or cannot be reached, or huggingface_hub is not installed.
    """
    hub = _library()

    class HubModel(hub.ModelHubMixin):  # type: ignore[name-defined, misc]
        def _save_pretrained(self, save_directory: Path) -> None:
            vae.save_pretrained(save_directory, license)

    try:
        return str(HubModel().push_to_hub(repo_id, **options))
    except UserError:
        raise
    except Exception as error:  # of the hub, or of whichever library it speaks HTTP with
        raise EnvironmentProblem(
            f"the model cannot be uploaded as {repo_id} ({_first_line(error)}). Log in with `hf auth login`, or give a "
            "token that may write there."
        ) from error


def _library() -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise EnvironmentProblem("models on the hub need the package huggingface_hub: uv sync --extra hub") from error
    return huggingface_hub


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
