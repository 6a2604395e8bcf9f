"""The verbs that make images with a model: `sample`, `reconstruct`, `interpolate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, Option

from unified_vae.cli.commands import MODEL
from unified_vae.console import open_console, show
from unified_vae.core.errors import DataError

Model = Annotated[str, MODEL]
Checkpoint = Annotated[
    str | None, Option(help="Weights of a run: best, last or a step.", show_default="its model, else the best")
]
Device = Annotated[str, Option(help="auto, cpu, cuda, cuda:N or mps.")]
Folder = Annotated[Path | None, Option(help="Folder for a PNG of each image.", show_default="none")]


def _sheet(default: str) -> Any:
    return Option(metavar="FILE.png", help="One image of all.", show_default=default)


def sample(
    model: Model,
    count: Annotated[int, Option(min=1, help="How many.")] = 16,
    density: Annotated[
        Literal["fitted", "normal"],
        Option(help="Draw latents from the density fitted to those of training images, or N(0, I)."),
    ] = "fitted",
    temperature: Annotated[float, Option(min=0, help="Below 1: more usual, less varied.")] = 1.0,
    seed: Annotated[int, Option(min=0, help="The same seed gives the same images.")] = 0,
    sheet: Annotated[Path | None, _sheet("samples.png, unless --folder")] = None,
    folder: Folder = None,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
) -> None:
    """Draw new images: a sheet, or a folder of files."""
    from unified_vae.inference.generate import sample  # imports torch: seconds

    sheet = sheet if sheet or folder else Path("samples.png")
    with open_console() as console:
        lines = sample(
            model, count, density, temperature, seed, sheet=sheet, folder=folder, checkpoint=checkpoint,
            device=device, observer=console,
        )  # fmt: skip
    show(lines)


def reconstruct(
    model: Model,
    images: Annotated[list[Path], Argument(metavar="IMAGES...", help="Image files, and folders of them.")],
    sheet: Annotated[Path | None, _sheet("reconstructions.png, unless --folder")] = None,
    folder: Folder = None,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
) -> None:
    """Encode and decode images: beside the originals, or as files."""
    from unified_vae.inference.generate import reconstruct

    sheet = sheet if sheet or folder else Path("reconstructions.png")
    with open_console() as console:
        lines, problem = reconstruct(
            model, images, sheet=sheet, folder=folder, checkpoint=checkpoint, device=device, observer=console
        )
    show(lines)
    if problem:  # images were left out
        raise DataError(problem)


def interpolate(
    model: Model,
    a: Annotated[str, Argument(metavar="A", help="An image file, or the seed of a sample.")],
    b: Annotated[str, Argument(metavar="B", help="Likewise.")],
    frames: Annotated[int, Option(min=2, help="Images from A to B.")] = 24,
    spherical: Annotated[bool, Option("--spherical", help="Turn at a steady angle (slerp).")] = False,
    sheet: Annotated[Path | None, _sheet("walk.png, unless there is --folder or --movie")] = None,
    folder: Folder = None,
    movie: Annotated[
        Path | None, Option(metavar="FILE", help="There and back: .gif or .webp.", show_default="none")
    ] = None,
    fps: Annotated[int, Option(min=1, max=100, help="Frames per second of the movie.")] = 12,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
) -> None:
    """Walk from one image to another: a sheet, files or a movie."""
    from unified_vae.inference.generate import interpolate

    sheet = sheet if sheet or folder or movie else Path("walk.png")
    with open_console() as console:
        lines = interpolate(
            model, a, b, frames, spherical, sheet=sheet, folder=folder, movie=movie, fps=fps, checkpoint=checkpoint,
            device=device, observer=console,
        )  # fmt: skip
    show(lines)
