"""The verb `encode`: a whole data source to latents."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated, Literal

import typer

from unified_vae.cli.door import Job
from unified_vae.cli.start import show, to_screen
from unified_vae.cli.text import wrapped
from unified_vae.cli.time_left import clock_text

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
Output = Annotated[Path, typer.Option(help="A folder for shards (.safetensors), a .npy or a .parquet file.")]
Checkpoint = Annotated[str | None, typer.Option(help="Weights of: best, last or a step.", show_default="best")]
Sample = Annotated[bool, typer.Option("--sample", help="Draw z ~ q(z|x) instead of mean and log variance.")]
Seed = Annotated[int, typer.Option(help="Of the draws.")]
Scale = Annotated[bool, typer.Option("--scale", help="Shift and scale to mean 0, variance 1, for latent diffusion.")]
BatchSize = Annotated[int, typer.Option(help="Images at once.", min=1)]
ShardSize = Annotated[int, typer.Option(help="Images per shard, and what a kill can lose.", min=1)]
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
    shard_size: ShardSize = 1024,
    device: Device = None,
    precision: Arithmetic = "fp32",
) -> Job:
    """Turn a whole data source into latents with names and labels; goes on where it was stopped."""

    def work(command: str) -> int:
        from unified_vae.experiment.using.latents import encode  # imports torch: seconds

        with closing(to_screen()) as screen:
            result = encode(
                model, data, output, checkpoint=checkpoint, sample=sample, seed=seed, scale=scale,
                batch_size=batch_size, shard_size=shard_size, device=device, precision=precision, observer=screen,
            )  # fmt: skip
        first = f"encoded {pace(result.computed, result.seconds)}"
        if not result.computed:
            first = "the same command has finished before"
        return show([first, *wrapped(f"{result.images:,} images in {result.output.as_posix()}", "  ")])

    return work


def pace(count: int, seconds: float) -> str:
    """Images, time and speed."""
    return f"{count:,} images in {clock_text(seconds)}, {count / max(seconds, 1e-9):,.0f} images/s"
