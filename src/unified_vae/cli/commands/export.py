"""The verb `export`: a finished model as files that other programs open."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Option

from unified_vae.cli.commands import Checkpoint
from unified_vae.console import open_console, show, table, wrapped
from unified_vae.export.export import Format, check
from unified_vae.export.export import export as run_export

if TYPE_CHECKING:
    from unified_vae.export.export import Exported


def export(
    target: Annotated[Path, Argument(metavar="TARGET", help="Folder of a run, of its checkpoint, or of a model.")],
    to: Annotated[
        Format,
        Option(
            help="onnx: for onnxruntime and others; torch: torch.export programs; "
            "safetensors: the plain model folder; diffusers: a folder for AutoencoderKL (family spatial)."
        ),
    ],
    output: Annotated[Path | None, Option(help="Folder to write.", show_default="RUN/exports/...")] = None,
    checkpoint: Checkpoint = None,
    weights: Annotated[
        Literal["ema", "raw"] | None,
        Option(help="ema: averaged over the steps; raw: as stepped.", show_default="ema; of a model what it has"),
    ] = None,
    half: Annotated[
        Literal["fp16", "bf16"] | None, Option(help="Half precision, where the audit finds it safe.")
    ] = None,
    data: Annotated[str | None, Option(help="Images of the half-precision audit.", show_default="the run's")] = None,
    images: Annotated[int, Option(help="How many images the audit looks at; 0: no audit.", min=0)] = 256,
    device: Annotated[str | None, Option(help="Device of the audit.", show_default="the run's")] = None,
) -> None:
    """Write a model as files for other programs, load them back and compare."""
    check(target, to, output, half, images)  # before the progress line and torch
    with open_console() as console:
        exported = run_export(
            target, to, output=output, checkpoint=checkpoint, weights=weights, half=half, data=data, images=images,
            device=device, observer=console,
        )  # fmt: skip
    show(exported_lines(exported))


def exported_lines(exported: Exported) -> list[str]:
    """List files, sizes, differences, and whether half precision is safe."""
    compared = {one.file: one for one in exported.compared}
    rows = [("file", "size", "largest difference", "compared in")]
    for name, count in exported.files.items():
        size = f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
        difference, reader = "", ""
        if one := compared.get(name):
            difference = f"{one.absolute:.1e} ({one.relative:.1e} relative)" if one.absolute else "0"
            reader = one.reader
        rows.append((name, size, difference, reader))
    title = wrapped(f"{exported.name} is in {exported.folder.as_posix()}", "  ")
    return ["", *table(rows), "", *title, *(line for text in exported.verdicts for line in wrapped(text, "  "))]
