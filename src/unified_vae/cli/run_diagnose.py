"""The door `diagnose.py RUN`: words to a request, the report to a table."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unified_vae.cli.door import Job, enter
from unified_vae.cli.start import show, to_screen
from unified_vae.cli.text import table, wrapped
from unified_vae.core.errors import ConfigError

if TYPE_CHECKING:
    from unified_vae.experiment.diagnosis.cause import Row
    from unified_vae.experiment.diagnosis.diagnose import Report

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, of its checkpoint, or of a model.")]
Checkpoint = Annotated[str | None, typer.Option(help="Weights to look at: best, last or a step.", show_default="best")]
Data = Annotated[str | None, typer.Option(help="Other images than the run's; a model without its run needs it.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", show_default="the run's")]
Output = Annotated[Path | None, typer.Option(help="Folder for the two files.", show_default="RUN")]


@app.command()
def diagnose(
    run: Run,
    checkpoint: Checkpoint = None,
    data: Data = None,
    device: Device = None,
    output: Output = None,
) -> Job:
    """Name the cause of blur or poor samples, its evidence, and the command to run next."""
    return functools.partial(_diagnose, run, checkpoint, data, device, output)


def _diagnose(
    run: Path, checkpoint: str | None, data: str | None, device: str | None, output: Path | None, command: str
) -> int:
    if not run.is_dir():
        raise ConfigError(f"{run} is no folder: name that of a run, e.g. runs/fast_high_quality")
    from unified_vae.experiment.diagnosis.diagnose import DiagnoseRequest, diagnose  # imports torch: seconds

    watcher = to_screen()
    try:
        report = diagnose(DiagnoseRequest(run, checkpoint, data, device, output), watcher)
    finally:
        watcher.close()
    return show(report_lines(report))


def report_lines(report: Report) -> list[str]:
    """Figures, evidence, the cause and the command."""
    found, cure = report.diagnosis, report.remedy
    lines = ["", *wrapped(f"diagnosis of {report.name}", "  "), "", "figures", *table(list(report.figures))]
    rows = [("cause", "applies", "figures"), *(_cells(row) for row in report.rows)]
    lines += ["", "evidence, in the order in which it is judged", *table(rows)]
    lines += ["", f"cause: {found.cause}", *wrapped(f"to do: {cure.advice}", "  ")]
    lines += [f"next:  {cure.command}"] if cure.command else []
    return [*lines, *wrapped(f"picture: {report.picture.as_posix()}", "  ")]


def _cells(row: Row) -> tuple[str, str, str]:
    return row.cause, {True: "yes", False: "no", None: "unknown"}[row.applies], row.figures


def main() -> int:
    """Run `diagnose.py` with the words of the command line; gives the exit code."""
    return enter(app, "diagnose.py")
