"""The verb `export`: a finished model as files that other programs open."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unified_vae.cli.door import Job
from unified_vae.cli.start import show, to_screen
from unified_vae.cli.text import table, wrapped
from unified_vae.experiment.export.place import check
from unified_vae.experiment.export.request import ExportRequest, Format, Half, Weights

if TYPE_CHECKING:
    from unified_vae.experiment.export.comparison import Checked
    from unified_vae.experiment.export.exporting import Exported

Target = Annotated[Path, typer.Argument(metavar="TARGET", help="Folder of a run, of its checkpoint, or of a model.")]
To = Annotated[
    Format,
    typer.Option(
        help="onnx: for onnxruntime and others; torch: torch.export programs; aoti: compiled for this machine; "
        "safetensors: the plain model folder; diffusers: a folder for AutoencoderKL (family spatial).",
    ),
]
Output = Annotated[Path | None, typer.Option(help="Folder to write.", show_default="RUN/exports/...")]
Checkpoint = Annotated[str | None, typer.Option(help="Weights of: best, last or a step.", show_default="best")]
Which = Annotated[
    Weights | None,
    typer.Option(help="ema: averaged over the steps; raw: as stepped.", show_default="ema; of a model what it has"),
]
Precision = Annotated[Half | None, typer.Option(help="Half precision, where the audit finds it safe.")]
Data = Annotated[str | None, typer.Option(help="Images of the half-precision audit.", show_default="the run's")]
Images = Annotated[int, typer.Option(help="How many images the audit looks at; 0: no audit.", min=0)]
Device = Annotated[str | None, typer.Option(help="Device of the audit.", show_default="the run's")]


def export(
    target: Target,
    to: To,
    output: Output = None,
    checkpoint: Checkpoint = None,
    weights: Which = None,
    half: Precision = None,
    data: Data = None,
    images: Images = 256,
    device: Device = None,
) -> Job:
    """Write a model as files for other programs, load them back and compare."""
    return functools.partial(
        _export, ExportRequest(target, to, output, checkpoint, weights, half, data, images, device)
    )


def _export(request: ExportRequest, command: str) -> int:
    check(request)
    from unified_vae.experiment.export.exporting import export  # imports torch: seconds

    watcher = to_screen()
    try:
        exported = export(request, watcher)
    finally:
        watcher.close()
    return show(exported_lines(exported))


def exported_lines(exported: Exported) -> list[str]:
    """Files, sizes, differences, the verdict on half precision."""
    compared = {one.file: one for one in exported.checked}
    rows = [("file", "size", "largest difference", "compared in")]
    for name, size in exported.files.items():
        rows.append((name, _size(size), *(_difference(compared[name]) if name in compared else ("", ""))))
    title = wrapped(f"{exported.name} is in {exported.folder.as_posix()}", "  ")
    return ["", *table(rows), "", *title, *(line for text in exported.verdicts for line in wrapped(text, "  "))]


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def _difference(one: Checked) -> tuple[str, str]:
    text = f"{one.absolute:.1e} ({one.relative:.1e} relative)" if one.absolute else "0"
    return text, one.reader
