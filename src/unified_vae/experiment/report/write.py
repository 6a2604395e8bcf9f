"""The verb `report`: one page of a run, or one that compares several."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from unified_vae.core.durable import reason, write_text
from unified_vae.core.errors import ConfigError, EnvironmentProblem
from unified_vae.experiment.diagnosis.cause import Diagnosis
from unified_vae.experiment.diagnosis.remedy import Situation, remedy
from unified_vae.experiment.report.findings import content
from unified_vae.experiment.report.one_run import of_one
from unified_vae.experiment.report.run_files import find_run
from unified_vae.experiment.report.several_runs import MOST, of_several
from unified_vae.experiment.run_folder import RunFolder

COMPARISON = Path("comparison.html")


@dataclass(frozen=True)
class ReportRequest:
    """What is asked for.

    Attributes:
        runs: folders of runs.
        output: the file; None: report.html in the run's folder, and for several runs comparison.html here.
    """

    runs: Sequence[Path]
    output: Path | None = None


@dataclass(frozen=True)
class Written:
    """The page, its bytes and the seconds it took."""

    path: Path
    size: int
    seconds: float


def report(request: ReportRequest) -> Written:
    """Read the runs and write the page.

    Raises:
        ConfigError: one of them is no run, or there are too many.
        EnvironmentProblem: the page cannot be written.
    """
    begun = time.monotonic()
    if len(request.runs) > MOST:
        raise ConfigError(f"{len(request.runs)} runs do not fit onto one page: name at most {MOST}")
    runs = [find_run(target) for target in request.runs]
    output = request.output or (runs[0].folder.report if len(runs) == 1 else COMPARISON)
    if output.is_dir():
        raise ConfigError(f"--output {output} is a folder: name a file in it, e.g. {output / COMPARISON}")
    text = of_one(runs[0]) if len(runs) == 1 else of_several(runs)
    _write(output, text)
    return Written(output, len(text.encode()), time.monotonic() - begun)


def _write(output: Path, content: str) -> None:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise EnvironmentProblem(f"{output} cannot be written ({reason(problem)}): give another --output") from problem
    write_text(output, content)


def at_the_end(
    folder: RunFolder, found: Diagnosis | None, place: Situation, step: int, notice: Callable[[str], None]
) -> list[str]:
    """Keep the diagnosis and write the page of a run that is over; returns the line that names it.

    Whatever goes wrong is only told.
    """
    try:
        if found is not None:
            write_text(folder.closing, json.dumps(content(found, remedy(found, place), step), indent=2) + "\n")
        written = report(ReportRequest([folder.root]))
    except Exception as problem:  # the run and its model are whole
        notice(f"{folder.report} could not be written ({reason(problem).rstrip('.')})")
        return []
    return [f"the run on one page: {written.path.as_posix()} (written in {written.seconds:.1f} s)"]
