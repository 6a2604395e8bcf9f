"""The verb `interpolate`: a walk between two images or two samples, as a sheet, files or a movie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unified_vae.api.pictures import to_pil
from unified_vae.api.vae import VAE
from unified_vae.core.errors import ConfigError
from unified_vae.experiment.using.model_at import open_model
from unified_vae.experiment.using.movie import check_movie, write_movie
from unified_vae.experiment.using.outputs import Places, Sheet, refuse_originals, write_png
from unified_vae.experiment.using.sample import file_name, noise_seed, told
from unified_vae.training.observers import Observer

COLUMNS = 12


@dataclass(frozen=True)
class InterpolateRequest:
    """What is asked for.

    Attributes:
        target: a run, a checkpoint, a model's folder or a name on the hub.
        a, b: a file each, or the seed of a sample.
        movie: .gif, .webp or .mp4; None for none.
        checkpoint: of a run; None takes its model.
    """

    target: str
    a: str
    b: str
    frames: int
    spherical: bool
    places: Places
    movie: Path | None = None
    frames_a_second: int = 12
    checkpoint: str | None = None
    device: str = "auto"


def interpolate(request: InterpolateRequest, observer: Observer) -> list[str]:
    """Walk and write; returns lines about it."""
    request.places.check()
    if request.movie is not None:
        check_movie(request.movie)
    first, last = _end(request.a), _end(request.b)
    folder = request.places.folder
    files = [] if folder is None else [file_name(folder, number) for number in range(1, request.frames + 1)]
    read = [end for end in (first, last) if isinstance(end, Path)]
    refuse_originals([request.places.sheet, request.movie, *files], read)
    vae = open_model(request.target, request.checkpoint, request.device, observer)
    observer.phase("walking", 0, request.frames)
    images = vae.interpolate(_given(vae, first), _given(vae, last), request.frames, request.spherical)
    sheet = Sheet(request.places.sheet)
    sheet.add(images)
    way = "at a steady angle" if request.spherical else "in a straight line"
    caption = f"from {_called(first)} to {_called(last)}, {way}"
    sheets = sheet.write(min(COLUMNS, request.frames), caption, 1, observer)
    pictures = to_pil(images)
    for picture, path in zip(pictures, files, strict=False):
        write_png(picture, path)
    lines = told(sheets, folder, len(pictures))
    if request.movie is not None:
        lines.append(f"movie: {write_movie(pictures, request.movie, request.frames_a_second).as_posix()}")
    return [f"{request.frames:,} pictures {caption}", *lines]


def _end(text: str) -> Path | int:
    """A file where there is one of that name, else a seed."""
    if Path(text).is_file():
        return Path(text)
    if text.isdecimal() and int(text) < 2**63:
        return int(text)
    what = "a folder: name one image" if Path(text).is_dir() else "neither an image file nor a seed (a whole number)"
    raise ConfigError(f"{text} is {what}")


def _given(vae: VAE, end: Path | int) -> Any:
    return end if isinstance(end, Path) else vae.sample_latents(1, generator=noise_seed(end))


def _called(end: Path | int) -> str:
    return end.name if isinstance(end, Path) else f"seed {end}"
