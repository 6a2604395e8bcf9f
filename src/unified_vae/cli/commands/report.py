"""The verb `report`: a run on one page, or several compared on one."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import typer

from unified_vae.cli.door import Job
from unified_vae.cli.start import show
from unified_vae.cli.text import wrapped

Runs = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, finished or not.")]
Output = Annotated[
    Path | None,
    typer.Option(help="The file to write.", show_default="RUN/report.html; of several runs, comparison.html"),
]


def report(runs: Runs, output: Output = None) -> Job:
    """Write a run's figures, curves, pictures and settings as one HTML page; several runs: one that compares them."""
    return functools.partial(_report, runs, output)


def _report(runs: list[Path], output: Path | None, command: str) -> int:
    from unified_vae.experiment.report.write import ReportRequest, report

    written = report(ReportRequest(runs, output))
    size = f"{written.size / 1e6:.1f} MB, in {written.seconds:.1f} s"
    return show(wrapped(f"the page: {written.path.as_posix()} ({size})", "  "))
