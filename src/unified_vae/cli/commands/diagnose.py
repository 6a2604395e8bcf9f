"""The command `diagnose.py RUN`, also `unified-vae diagnose`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from unified_vae.cli.commands import Device
from unified_vae.console import open_console, show, table, wrapped
from unified_vae.core.errors import ConfigError

if TYPE_CHECKING:
    from unified_vae.evaluation.diagnose import Report


def diagnose(
    run: Annotated[Path, Argument(metavar="RUN", help="Folder of a run, of its checkpoint, or of a model.")],
    checkpoint: Annotated[
        str | None, Option(help="Weights to look at: best, last or a step.", show_default="best")
    ] = None,
    data: Annotated[str | None, Option(help="Other images than the run's; a model without its run needs it.")] = None,
    device: Device = None,
    output: Annotated[Path | None, Option(help="Folder for the two files.", show_default="RUN")] = None,
) -> None:
    """Name the cause of blur or poor samples, its evidence, and the command to run next."""
    if not run.is_dir():
        raise ConfigError(f"{run} is not a folder: name that of a run, e.g. runs/fast_high_quality")
    from unified_vae.evaluation.diagnose import diagnose  # imports torch: seconds

    with open_console() as console:
        report = diagnose(run, checkpoint=checkpoint, data=data, device=device, output=output, observer=console)
    show(report_lines(report))


def report_lines(report: Report) -> list[str]:
    """List metrics, evidence, the cause and the command."""
    diagnosis, recommendation = report.diagnosis, report.recommendation
    applies = {True: "yes", False: "no", None: "unknown"}
    rows = [("cause", "applies", "evidence")]
    rows += [(evidence.cause, applies[evidence.applies], evidence.text) for evidence in diagnosis.evidence()]
    lines = ["", *wrapped(f"diagnosis of {report.name}", "  "), "", "metrics", *table(report.facts)]
    lines += ["", "evidence, in the order of the checks", *table(rows)]
    lines += ["", f"cause: {diagnosis.cause}", *wrapped(f"to do: {recommendation.advice}", "  ")]
    lines += [f"next:  {recommendation.command}"] if recommendation.command else []
    return [*lines, *wrapped(f"picture: {report.picture.as_posix()}", "  ")]
