"""The verbs `encode` and `decode`: a whole data source to latents, and latents back to images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from unified_vae.cli.commands import Checkpoint, Device, Model
from unified_vae.console import clock_text, open_console, show, wrapped

BatchSize = Annotated[int, Option(help="Images at once.", min=1)]
Precision = Annotated[Literal["fp32", "bf16", "fp16"], Option(help="Of the network: fp32, bf16 or fp16.")]


def encode(
    model: Model,
    data: Annotated[
        str | None,
        Argument(
            metavar="[DATA]",
            help="A folder, a .zip or .tar, a .npy or .npz, torchvision:NAME, hf:owner/name, or builtin.",
            show_default="the run's images",
        ),
    ] = None,
    *,
    output: Annotated[Path, Option(help="A folder for shards (.safetensors), a .npy or a .parquet file.")],
    checkpoint: Checkpoint = None,
    sample: Annotated[bool, Option("--sample", help="Draw z ~ q(z|x) instead of mean and log variance.")] = False,
    seed: Annotated[int, Option(help="Of the draws.")] = 0,
    scale: Annotated[
        bool, Option("--scale", help="Shift and scale to mean 0, variance 1, for latent diffusion.")
    ] = False,
    batch_size: BatchSize = 64,
    shard_size: Annotated[int, Option(help="Images per shard, and what a kill can lose.", min=1)] = 1024,
    device: Device = None,
    precision: Precision = "fp32",
) -> None:
    """Turn a whole data source into latents with names and labels; continues where it was stopped."""
    from unified_vae.inference.latents import encode  # imports torch: seconds

    with open_console() as console:
        result = encode(
            model, data, output, checkpoint=checkpoint, sample=sample, seed=seed, scale=scale,
            batch_size=batch_size, shard_size=shard_size, device=device, precision=precision, observer=console,
        )  # fmt: skip
    first = f"encoded {_pace(result.computed, result.seconds)}"
    if not result.computed:
        first = "the same command has finished before"
    show([first, *wrapped(f"{result.images:,} images in {result.output.as_posix()}", "  ")])


def decode(
    model: Model,
    latents: Annotated[
        Path, Argument(metavar="LATENTS", help="A folder of shards, a .safetensors, .npy or .parquet, or an index.")
    ],
    *,
    output: Annotated[Path, Option(help="A folder for PNG files, or a .npy file.")],
    checkpoint: Checkpoint = None,
    scale: Annotated[
        bool, Option("--scale", help="Latents of another program that were shifted and scaled, as by encode --scale.")
    ] = False,
    other_model: Annotated[
        bool, Option("--other-model", help="Decode although another model made the latents.")
    ] = False,
    batch_size: BatchSize = 64,
    device: Device = None,
    precision: Precision = "fp32",
) -> None:
    """Turn latents back into images by name; continues where it was stopped."""
    from unified_vae.inference.latents import decode

    with open_console() as console:
        result = decode(
            model, latents, output, checkpoint=checkpoint, scale=scale, other_model=other_model,
            batch_size=batch_size, device=device, precision=precision, observer=console,
        )  # fmt: skip
    lines = wrapped(f"{result.images:,} images in {result.output.as_posix()}", "  ")
    show([f"decoded {_pace(result.computed, result.seconds)}", *lines])


def _pace(count: int, seconds: float) -> str:
    return f"{count:,} images in {clock_text(seconds)}, {count / max(seconds, 1e-9):,.0f} images/s"
