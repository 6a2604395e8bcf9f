"""The verb `encode`: a whole data source to latents."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from unified_vae.cli.door import Job
from unified_vae.cli.start import show, to_screen
from unified_vae.cli.text import wrapped
from unified_vae.cli.time_left import clock_text

if TYPE_CHECKING:
    from unified_vae.experiment.using.encode import Encoded

Precision = Literal["fp32", "bf16", "fp16"]
Model = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL", help="Folder of a run, of its checkpoint, or of a model; or owner/name on the hub."
    ),
]
Data = Annotated[
    str | None,
    typer.Argument(
        metavar="[DATA]",
        help="A folder, a .zip or .tar, a .npy or .npz, torchvision:NAME, hf:owner/name, or builtin.",
        show_default="the run's images",
    ),
]
Output = Annotated[Path, typer.Option(help="File of latents: .safetensors, .npy or .parquet.")]
Checkpoint = Annotated[str | None, typer.Option(help="Weights of: best, last or a step.", show_default="best")]
Sample = Annotated[bool, typer.Option("--sample", help="Draw z ~ q(z|x) instead of mean and log variance.")]
Seed = Annotated[int, typer.Option(help="Of the draws.")]
Scale = Annotated[bool, typer.Option("--scale", help="Shift and scale to mean 0, variance 1, for latent diffusion.")]
BatchSize = Annotated[int, typer.Option(help="Images at once.", min=1)]
ShardSize = Annotated[int | None, typer.Option(help="Images a file.", min=1, show_default="all in one file")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", show_default="the run's")]
Arithmetic = Annotated[Precision, typer.Option(help="Of the network: fp32, bf16 or fp16.")]


def encode(
    model: Model,
    data: Data = None,
    *,
    output: Output,
    checkpoint: Checkpoint = None,
    sample: Sample = False,
    seed: Seed = 0,
    scale: Scale = False,
    batch_size: BatchSize = 64,
    shard_size: ShardSize = None,
    device: Device = None,
    precision: Arithmetic = "fp32",
) -> Job:
    """Turn a whole data source into latents with names and labels; goes on where it was stopped."""

    words = (model, data, output, checkpoint, sample, seed, scale, batch_size, shard_size, device, precision)
    return functools.partial(_encode, words)


def _encode(words: tuple[object, ...], command: str) -> int:
    from unified_vae.experiment.using.encode import EncodeRequest, encode  # imports torch: seconds

    watcher = to_screen()
    try:
        done = encode(EncodeRequest(*words), watcher)  # type: ignore[arg-type]
    finally:
        watcher.close()
    return show(encoded_lines(done))


def encoded_lines(done: Encoded) -> list[str]:
    """Where the latents are, and how fast they came."""
    first, *others = [path.as_posix() for path in done.files]
    files = first + (f" and {len(others)} more" if len(others) > 3 else "".join(f", {path}" for path in others))
    lines = wrapped(f"{done.images:,} images in {files}, described by {done.index.as_posix()}", "  ")
    if not done.computed:
        return ["the same command has finished before", *lines]
    return [f"encoded {pace(done.computed, done.seconds)}", *lines]


def pace(count: int, seconds: float) -> str:
    """Images, time and speed."""
    return f"{count:,} images in {clock_text(seconds)}, {count / max(seconds, 1e-9):,.0f} images/s"
