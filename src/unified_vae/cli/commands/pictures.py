"""The verbs that make pictures with a model: `sample`, `reconstruct`, `interpolate`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unified_vae.cli.door import Job
from unified_vae.cli.start import show, to_screen
from unified_vae.core.errors import DataError

if TYPE_CHECKING:
    from unified_vae.core.events import Observer

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="Folder of a run, of its checkpoint, or of a model; or owner/name on the hub."
    ),
]
Images = Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="Image files, and folders of them.")]
Checkpoint = Annotated[
    str | None, typer.Option(help="Weights of a run: best, last or a step.", show_default="its model, else the best")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Folder = Annotated[Path | None, typer.Option(help="Folder for a PNG of each picture.", show_default="none")]


class Density(StrEnum):
    """What latents are drawn from."""

    FITTED = "fitted"
    NORMAL = "normal"


def _sheet(name: str) -> Any:
    words = f"{name}, unless there is --folder or --movie" if name.startswith("w") else f"{name}, unless --folder"
    return typer.Option(metavar="FILE.png", help="One picture of all.", show_default=words)


def sample(
    model: Model,
    count: Annotated[int, typer.Option(min=1, help="How many.")] = 16,
    density: Annotated[
        Density, typer.Option(help="Draw latents from the density fitted to those of training images, or N(0, I).")
    ] = Density.FITTED,
    temperature: Annotated[float, typer.Option(min=0, help="Below 1: more usual, less varied.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same pictures.")] = 0,
    sheet: Annotated[Path | None, _sheet("samples.png")] = None,
    folder: Folder = None,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
) -> Job:
    """Draw new pictures: a sheet, or a folder of files."""

    def work(observer: Observer) -> tuple[list[str], str]:
        from unified_vae.experiment.using.generate import sample

        lines = sample(
            model, count, density.value, temperature, seed, sheet=_default(sheet, "samples.png", folder),
            folder=folder, checkpoint=checkpoint, device=device, observer=observer,
        )  # fmt: skip
        return lines, ""

    return functools.partial(_do, work)


def reconstruct(
    model: Model,
    images: Images,
    sheet: Annotated[Path | None, _sheet("reconstructions.png")] = None,
    folder: Folder = None,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
) -> Job:
    """Put images through a model and back: beside the originals, or as files."""

    def work(observer: Observer) -> tuple[list[str], str]:
        from unified_vae.experiment.using.generate import reconstruct

        return reconstruct(
            model, images, sheet=_default(sheet, "reconstructions.png", folder), folder=folder,
            checkpoint=checkpoint, device=device, observer=observer,
        )  # fmt: skip

    return functools.partial(_do, work)


def interpolate(
    model: Model,
    a: Annotated[str, typer.Argument(metavar="A", help="An image file, or the seed of a sample.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Likewise.")],
    frames: Annotated[int, typer.Option(min=2, help="Pictures from A to B.")] = 24,
    spherical: Annotated[bool, typer.Option("--spherical", help="Turn at a steady angle (slerp).")] = False,
    sheet: Annotated[Path | None, _sheet("walk.png")] = None,
    folder: Folder = None,
    movie: Annotated[
        Path | None, typer.Option(metavar="FILE", help="There and back: .gif, .webp or .mp4.", show_default="none")
    ] = None,
    fps: Annotated[int, typer.Option(min=1, max=100, help="Pictures a second of the movie.")] = 12,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
) -> Job:
    """Walk from one picture to another: a sheet, files or a movie."""

    def work(observer: Observer) -> tuple[list[str], str]:
        from unified_vae.experiment.using.generate import interpolate

        lines = interpolate(
            model, a, b, frames, spherical, sheet=_default(sheet, "walk.png", folder, movie), folder=folder,
            movie=movie, fps=fps, checkpoint=checkpoint, device=device, observer=observer,
        )  # fmt: skip
        return lines, ""

    return functools.partial(_do, work)


def _default(sheet: Path | None, name: str, *others: Path | None) -> Path | None:
    """The sheet: as named, or under its usual name where nothing else was asked for."""
    return sheet if sheet is not None or any(others) else Path(name)


def _do(work: Callable[[Observer], tuple[list[str], str]], command: str) -> int:
    """Do the work; it gives the lines to show, and the error to end with where files were left out."""
    with closing(to_screen()) as screen:
        lines, problem = work(screen)
    code = show(lines)
    if problem:
        raise DataError(problem)
    return code
