"""The verb `sample`: new pictures from a model, on a sheet or as files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unified_vae.api.pictures import to_pil
from unified_vae.api.vae import BATCH, DensityName
from unified_vae.core.counter import key
from unified_vae.experiment.using.model_at import open_model
from unified_vae.experiment.using.outputs import Places, Sheet, write_png
from unified_vae.models.pretrained import DENSITY
from unified_vae.training.observers import Observer

COLUMNS = 8


@dataclass(frozen=True)
class SampleRequest:
    """What is asked for.

    Attributes:
        target: a run, a checkpoint, a model's folder or a name on the hub.
        checkpoint: of a run; None takes its model.
    """

    target: str
    count: int
    density: DensityName
    temperature: float
    seed: int
    places: Places
    checkpoint: str | None = None
    device: str = "auto"


def sample(request: SampleRequest, observer: Observer) -> list[str]:
    """Draw and write; returns lines about it. The first pictures of a seed are the same however many are drawn."""
    request.places.check()
    vae = open_model(request.target, request.checkpoint, request.device, observer)
    if request.density == "fitted" and vae.model.density.kind == "normal":
        observer.notice(why_normal(vae.description.get(DENSITY)))
    latents = vae.sample_latents(request.count, request.density, request.temperature, noise_seed(request.seed))
    source = "N(0, I)" if request.density == "normal" else vae.model.density.describe()
    sheet, written = Sheet(request.places.sheet), 0
    for some in latents.split(BATCH):
        images = vae.decode(some)
        sheet.add(images)
        for picture in to_pil(images) if request.places.folder else ():
            written += 1
            write_png(picture, file_name(request.places.folder, written))
        observer.phase("sampling", sheet.seen, request.count)
    caption = f"samples from {source}, temperature {request.temperature:g}, seed {request.seed}"
    sheets = sheet.write(min(COLUMNS, request.count), caption, 1, observer)
    return [f"{request.count:,} {caption}", *told(sheets, request.places.folder, written)]


def why_normal(entry: Any) -> str:
    """Why N(0, I) is what a model samples from, by the density's entry in its config file."""
    match entry:
        case {"log_likelihood": Mapping() as tried} if len(tried) > 1:
            return f"samples are from N(0, I), the likeliest of the {len(tried)} densities fitted to these weights"
        case {"asked": {"fit": "normal"}}:
            return "samples are from N(0, I), as density.fit=normal asked for"
        case {"note": str(note)} if note:
            return note
    return "no latent density was fitted to these weights: samples are from N(0, I)"


def noise_seed(seed: int) -> int:
    """The seed of a generator, for the verbs' samples."""
    return key(seed, "samples") % 2**63


def file_name(folder: Path | None, number: int) -> Path:
    """Of the picture `number`, from 1 on."""
    return (folder or Path()) / f"{number:06}.png"


def told(sheets: list[Path], folder: Path | None, files: int) -> list[str]:
    """Lines about what was written."""
    lines = [f"sheet: {path.as_posix()}" for path in sheets]
    return lines if folder is None else [*lines, f"files: {files:,} in {folder.as_posix()}"]
