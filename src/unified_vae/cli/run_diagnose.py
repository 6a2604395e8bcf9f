"""The command `diagnose.py RUN`, which is also the verb `diagnose`: the report as tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unified_vae.cli.door import Job, enter
from unified_vae.cli.start import show, to_screen
from unified_vae.cli.text import table, wrapped
from unified_vae.core.errors import ConfigError

if TYPE_CHECKING:
    from unified_vae.evaluation.diagnose import Report

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def diagnose(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, of its checkpoint, or of a model.")],
    checkpoint: Annotated[
        str | None, typer.Option(help="Weights to look at: best, last or a step.", show_default="best")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Other images than the run's; a model without its run needs it.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", show_default="the run's")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the two files.", show_default="RUN")] = None,
) -> Job:
    """Name the cause of blur or poor samples, its evidence, and the command to run next."""

    def work(command: str) -> int:
        if not run.is_dir():
            raise ConfigError(f"{run} is no folder: name that of a run, e.g. runs/fast_high_quality")
        from unified_vae.evaluation.diagnose import diagnose  # imports torch: seconds

        watcher = to_screen()
        try:
            report = diagnose(run, checkpoint=checkpoint, data=data, device=device, output=output, observer=watcher)
        finally:
            watcher.close()
        return show(report_lines(report))

    return work


def report_lines(report: Report) -> list[str]:
    """Return metrics, evidence, the cause and the command."""
    diagnosis, recommendation = report.diagnosis, report.recommendation
    applies = {True: "yes", False: "no", None: "unknown"}
    rows = [("cause", "applies", "evidence")]
    rows += [(evidence.cause, applies[evidence.applies], evidence.text) for evidence in diagnosis.evidence()]
    lines = ["", *wrapped(f"diagnosis of {report.name}", "  "), "", "metrics", *table(report.facts)]
    lines += ["", "evidence, in the order in which it is judged", *table(rows)]
    lines += ["", f"cause: {diagnosis.cause}", *wrapped(f"to do: {recommendation.advice}", "  ")]
    lines += [f"next:  {recommendation.command}"] if recommendation.command else []
    return [*lines, *wrapped(f"picture: {report.picture.as_posix()}", "  ")]


def main() -> int:
    """Run `diagnose.py` with the arguments of the command line; returns the exit code."""
    return enter(app, "diagnose.py")
