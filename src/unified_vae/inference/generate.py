"""The commands `sample`, `reconstruct` and `interpolate`: images from a model, as a grid, as files or as a movie."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from unified_vae.core.errors import ConfigError, EnvironmentProblem, reason, uv_run
from unified_vae.core.events import Observer
from unified_vae.core.files import STAGE_PREFIX, discard
from unified_vae.core.rng import key
from unified_vae.core.run_dir import RunFolder
from unified_vae.data.sources.base import Quarantined
from unified_vae.inference.image_grids import ImageGrid, check_outputs, check_suffix, to_pil, write_png
from unified_vae.inference.images import batches, image_files, report_left_out
from unified_vae.inference.model import BATCH, VAE, DensityName, load_vae
from unified_vae.metrics.images import psnr_per_image, squared_errors
from unified_vae.models.density import FLOW_REPLACED
from unified_vae.models.pretrained import DENSITY

SAMPLE_COLUMNS, PAIR_COLUMNS, INTERPOLATION_COLUMNS = 8, 4, 12
MOVIE_SUFFIXES = (".gif", ".webp")
MIN_MOVIE_HEIGHT = 256
"""Smaller images are enlarged by a whole factor, so that a movie can be looked at."""


def sample(
    target: str,
    count: int,
    density: DensityName,
    temperature: float,
    seed: int,
    *,
    sheet: Path | None,
    folder: Path | None,
    checkpoint: str | None = None,
    device: str = "auto",
    observer: Observer,
) -> list[str]:
    """Draw and write; returns lines about it. The first images of a seed are the same however many are drawn.

    Args:
        target: a run, a checkpoint, a model's folder or a name on the hub.
        sheet: a PNG of all; None for none.
        folder: for a PNG each; None for none.
        checkpoint: of a run; None takes its model.
    """
    check_outputs(sheet, folder)
    vae = _load(target, checkpoint, device, observer)
    if density == "fitted" and vae.model.density.kind == "normal":
        observer.notice(_why_normal(vae.description.get(DENSITY), Path(target)))
        density = "normal"
    latents = vae.sample_latents(count, density, temperature, noise_seed(seed))
    grid = ImageGrid(sheet)
    for rows in latents.split(BATCH):
        images = vae.decode(rows)
        for number, image in enumerate(to_pil(images) if folder else (), start=grid.count + 1):
            write_png(image, (folder or Path()) / f"{number:06}.png")
        grid.add(images)
        observer.phase("sampling", grid.count, count)
    source = "N(0, I)" if density == "normal" else vae.model.density.describe()
    caption = f"samples from {source}, temperature {temperature:g}, seed {seed}"
    lines = grid.write(min(SAMPLE_COLUMNS, count), caption, 1, observer)
    return [f"{count:,} {caption}", *lines, *_files_line(folder, count)]


def _why_normal(entry: Any, target: Path) -> str:
    """Why N(0, I) is what a model samples from, by the density's entry in its config file."""
    match entry:
        case {"kind": "flow"}:
            run = next((path for path in (target, target.parent) if RunFolder(path).checkpoints.is_dir()), Path("RUN"))
            words = ("--config", run / RunFolder(run).config.name, "--run-dir", run, "--set", "density.fit=auto")
            return f"{FLOW_REPLACED}. This fits a new density: {uv_run('train_unified.py', *words)}"
        case {"log_likelihood": Mapping() as candidates} if len(candidates) > 1:
            return f"samples are from N(0, I), the likeliest of the {len(candidates)} densities fitted to these weights"
        case {"asked": {"fit": "normal"}}:
            return "samples are from N(0, I), as density.fit=normal asked for"
        case {"note": str(note)} if note:
            return note
    return "no latent density was fitted to these weights: samples are from N(0, I)"


def noise_seed(seed: int) -> int:
    """The seed of a generator, for the samples of these commands."""
    return key(seed, "samples") % 2**63


def _load(target: str, checkpoint: str | None, device: str, observer: Observer) -> VAE:
    observer.phase("reading the model", 0, None)
    return load_vae(target, checkpoint, device=device, on_message=observer.notice)


def _files_line(folder: Path | None, count: int) -> list[str]:
    return [] if folder is None else [f"files: {count:,} in {folder.as_posix()}"]


def reconstruct(
    target: str,
    images: Sequence[Path],
    *,
    sheet: Path | None,
    folder: Path | None,
    checkpoint: str | None = None,
    device: str = "auto",
    observer: Observer,
) -> tuple[list[str], str]:
    """Reconstruct what can be read, and write it.

    Args:
        target: a run, a checkpoint, a model's folder or a name on the hub.
        images: files, and folders of files.
        sheet: a PNG of all originals and reconstructions; None for none.
        folder: for a PNG of each reconstruction; None for none.
        checkpoint: of a run; None takes its model.

    Returns:
        Lines about it, and a sentence that names the files left out; empty where there is none.

    Raises:
        UserError: no such model, none of the images can be used, or a file cannot be written.
    """
    files = image_files(images)
    names = list[Path]()
    if folder is not None:  # called after the files; a number tells those of the same name apart
        used_names = set[str]()
        for file in files:
            name, number = f"{file.stem}-reconstruction", 1
            while name.lower() in used_names:  # some file systems take A.png for a.png
                number += 1
                name = f"{file.stem}-reconstruction-{number}"
            used_names.add(name.lower())
            names.append(folder / f"{name}.png")
    check_outputs(sheet, folder, names, files)
    vae = _load(target, checkpoint, device, observer)

    grid, quality, used, left_out = ImageGrid(sheet), list[Tensor](), list[Path](), list[Quarantined]()
    for batch in batches(files, vae.form, BATCH, vae.device, left_out, skip_named=True):
        reconstructions = vae.reconstruct(batch.images)
        quality.append(psnr_per_image(squared_errors(reconstructions, batch.images)))
        grid.add(torch.stack([batch.images, reconstructions], dim=1).flatten(0, 1))
        for image, number in zip(to_pil(reconstructions) if names else (), batch.numbers, strict=False):
            write_png(image, names[number])
        used += [files[number] for number in batch.numbers]
        observer.phase("reconstructing", batch.numbers[-1] + 1, len(files))
    columns = 2 * min(PAIR_COLUMNS, len(used))
    lines = grid.write(columns, "original | reconstruction, of the posterior's mean", 2, observer)

    psnr = torch.cat(quality)
    figures = f"{len(used):,} image{'s' * (len(used) > 1)} reconstructed, PSNR {float(psnr.mean()):.2f} dB"
    if len(used) > 1:
        figures += f" on average, {float(psnr.min()):.2f} dB at worst ({used[int(psnr.argmin())]})"
    return [figures, *lines, *_files_line(folder, len(used))], report_left_out(left_out, len(files), observer)


def interpolate(
    target: str,
    a: str,
    b: str,
    frames: int,
    spherical: bool,
    *,
    sheet: Path | None,
    folder: Path | None,
    movie: Path | None = None,
    fps: int = 12,
    checkpoint: str | None = None,
    device: str = "auto",
    observer: Observer,
) -> list[str]:
    """Write the images from `a` to `b`; returns lines about it.

    Args:
        target: a run, a checkpoint, a model's folder or a name on the hub.
        a, b: an image file each, or the seed of a sample.
        sheet: a PNG of all; None for none.
        folder: for a PNG each; None for none.
        movie: .gif or .webp, there and back; None for none.
        checkpoint: of a run; None takes its model.
    """
    if movie is not None:
        check_suffix(movie, MOVIE_SUFFIXES, "--movie")
    ends: list[Path | int] = []
    for text in (a, b):
        if Path(text).is_file():
            ends.append(Path(text))
        elif text.isdecimal() and int(text) < 2**63:
            ends.append(int(text))
        else:
            is_folder = Path(text).is_dir()
            what = "a folder: name one image" if is_folder else "neither an image file nor a seed (a whole number)"
            raise ConfigError(f"{text} is {what}")
    files = [] if folder is None else [folder / f"{number:06}.png" for number in range(1, frames + 1)]
    check_outputs(sheet, folder, [movie, *files], [end for end in ends if isinstance(end, Path)])
    vae = _load(target, checkpoint, device, observer)

    observer.phase("interpolating", 0, frames)
    first, last = (
        end if isinstance(end, Path) else vae.sample_latents(1, generator=noise_seed(end)) for end in ends
    )  # fmt: skip
    decoded = vae.interpolate(first, last, frames, spherical)
    start, stop = (end.name if isinstance(end, Path) else f"seed {end}" for end in ends)
    caption = f"from {start} to {stop}, {'at a steady angle' if spherical else 'in a straight line'}"
    grid = ImageGrid(sheet)
    grid.add(decoded)
    lines = grid.write(min(INTERPOLATION_COLUMNS, frames), caption, 1, observer)
    images = to_pil(decoded)
    for image, path in zip(images, files, strict=False):
        write_png(image, path)
    lines += _files_line(folder, frames)
    if movie is not None:
        _write_movie(images, movie, fps)
        lines.append(f"movie: {movie.as_posix()}")
    return [f"{frames:,} images {caption}", *lines]


def _write_movie(images: Sequence[Image.Image], path: Path, fps: int) -> None:
    """Write the images from the first to the last and back, in a circle."""
    zoom = math.ceil(MIN_MOVIE_HEIGHT / images[0].height)
    width, height = (zoom * side for side in images[0].size)
    frames = [
        image.convert("RGB").resize((width, height), Image.Resampling.NEAREST) for image in [*images, *images[-2:0:-1]]
    ]
    stage = path.with_name(f"{STAGE_PREFIX}{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        kind, milliseconds = path.suffix[1:].upper(), round(1000 / fps)
        frames[0].save(stage, kind, save_all=True, append_images=frames[1:], duration=milliseconds, loop=0)
        stage.replace(path)
    except OSError as error:
        raise EnvironmentProblem(f"{path} cannot be written ({reason(error)}): name another place") from error
    finally:
        discard(stage)
