"""The verb `compare`: several models side by side."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unified_vae.cli.commands.evaluate import (
    HEADINGS,
    Device,
    Draws,
    Inception,
    MaxImages,
    Samples,
    Seed,
    Skip,
    missing,
)
from unified_vae.cli.door import Job
from unified_vae.cli.start import show, to_screen
from unified_vae.cli.text import number, table, wrapped
from unified_vae.experiment.evaluation.request import DRAWS, CompareRequest, Group, Settings

if TYPE_CHECKING:
    from unified_vae.experiment.evaluation.compare import Comparison, Mark, Row
    from unified_vae.experiment.evaluation.figure import Figure

Targets = Annotated[list[Path], typer.Argument(metavar="TARGET...", help="Folders of runs, checkpoints or models.")]
Data = Annotated[
    str | None, typer.Option(help="Images to measure all on.", show_default="the runs' validation images, if the same")
]
Output = Annotated[Path, typer.Option(help="Folder of the report, the sheet and the plot.")]

SIGNS = {"best": " *", "level": " =", "": ""}
LEGEND = (
    "* best; = not told apart from it (differences on resamples of the same images; for distances of sets, "
    "overlapping intervals). Behind ±: half of the 95 % interval."
)


def compare(
    targets: Targets,
    data: Data = None,
    output: Output = Path("comparison"),
    samples: Samples = None,
    max_images: MaxImages = None,
    draws: Draws = DRAWS,
    skip: Skip = None,
    inception: Inception = None,
    device: Device = None,
    seed: Seed = 0,
) -> Job:
    """Set models against one another on the same images: a table, a sheet, a plot."""
    left_out = frozenset({*(skip or ()), Group.FACTORS})  # those take minutes a model: `evaluate` has them
    settings = Settings(samples, max_images, draws, left_out, inception, device, seed)
    return functools.partial(_compare, CompareRequest(targets, data, output, settings))


def _compare(request: CompareRequest, command: str) -> int:
    from unified_vae.experiment.evaluation.compare import compare  # imports torch: seconds

    watcher = to_screen()
    try:
        found = compare(request, watcher)
    finally:
        watcher.close()
    return show(comparison_lines(found))


def comparison_lines(found: Comparison) -> Iterator[str]:
    """The table, what is missing, the files."""
    yield ""
    for label, name in zip(found.labels, found.names, strict=True):
        yield from wrapped(f"{label}: {name}", "  ")
    yield from wrapped(f"images: {found.images}", "  ")
    yield ""
    yield from table(_rows(found))
    yield ""
    if any(mark for row in found.rows for mark in row.marks):
        yield from wrapped(LEGEND, "  ")
    yield from missing([figure for row in found.rows for figure in row.figures if figure is not None])
    yield from (line for note in found.notes for line in wrapped(f"note: {note}", "  "))
    for what, path in (("report", found.report), ("sheet", found.sheet), ("plot", found.plot)):
        yield from wrapped(f"{what}: {path.as_posix()}", "  ")


def _rows(found: Comparison) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [("metric", "unit", "better", *found.labels)]
    for group, heading in HEADINGS.items():
        own = [row for row in found.rows if row.first.group is group and _has_value(row)]
        rows += [(heading.upper(), "", "", *("" for _ in found.labels))] if own else []
        rows += [_cells(row) for row in own]
    return rows


def _has_value(row: Row) -> bool:
    return any(figure is not None and figure.value is not None for figure in row.figures)


def _cells(row: Row) -> tuple[str, ...]:
    values = [_value(figure, mark) for figure, mark in zip(row.figures, row.marks, strict=True)]
    return (row.first.title, row.first.unit, row.first.better, *values)


def _value(figure: Figure | None, mark: Mark) -> str:
    if figure is None or figure.value is None:
        return "not available"
    half = "" if figure.interval is None else f" ± {(figure.interval.high - figure.interval.low) / 2:.2g}"
    return f"{number(figure.value)}{half}{SIGNS[mark]}"
