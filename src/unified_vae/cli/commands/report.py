"""The verb `report`: one page of a run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from unified_vae.console import show, wrapped
from unified_vae.core.errors import ConfigError, uv_run


def report(
    runs: Annotated[list[Path], Argument(metavar="RUN", help="Folder of a run, finished or not.")],
    output: Annotated[Path | None, Option(help="The file to write.", show_default="RUN/report.html")] = None,
) -> None:
    """Write a run's metrics, curves, images and settings as one HTML page."""
    from unified_vae.report.page import write_report

    if len(runs) > 1:
        command = uv_run("unified-vae", "evaluate", *map(str, runs))
        raise ConfigError(f"report takes one run; several are measured side by side by {command}")
    start = time.monotonic()
    page = write_report(runs[0], output)
    size = f"{page.stat().st_size / 1e6:.1f} MB, in {time.monotonic() - start:.1f} s"
    show(wrapped(f"the page: {page.as_posix()} ({size})", "  "))
