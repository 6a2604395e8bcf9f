"""The verb `decode`: latents of a file back to images."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from unified_vae.cli.commands.encode import Arithmetic, BatchSize, Checkpoint, Device, Model, pace
from unified_vae.cli.door import Job
from unified_vae.cli.start import show, to_screen
from unified_vae.cli.text import wrapped

Latents = Annotated[
    Path, typer.Argument(metavar="LATENTS", help="A folder of shards, a .safetensors, .npy or .parquet, or an index.")
]
Output = Annotated[Path, typer.Option(help="A folder for PNG files, a .npy file, or a .png for a sheet.")]
Scale = Annotated[
    bool,
    typer.Option("--scale", help="Latents of another program that were shifted and scaled, as by encode --scale."),
]
OtherModel = Annotated[bool, typer.Option("--other-model", help="Decode although another model made the latents.")]


def decode(
    model: Model,
    latents: Latents,
    *,
    output: Output,
    checkpoint: Checkpoint = None,
    scale: Scale = False,
    other_model: OtherModel = False,
    batch_size: BatchSize = 64,
    device: Device = None,
    precision: Arithmetic = "fp32",
) -> Job:
    """Turn latents back into images by name; goes on where it was stopped."""

    def work(command: str) -> int:
        from unified_vae.experiment.using.latents import decode  # imports torch: seconds

        with closing(to_screen()) as screen:
            result = decode(
                model, latents, output, checkpoint=checkpoint, scale=scale, other_model=other_model,
                batch_size=batch_size, device=device, precision=precision, observer=screen,
            )  # fmt: skip
        lines = wrapped(f"{result.images:,} images in {result.output.as_posix()}", "  ")
        return show([f"decoded {pace(result.computed, result.seconds)}", *lines])

    return work
