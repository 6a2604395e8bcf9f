"""The verb `report`: one page of a run, or one that compares several."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from unified_vae.console import show, wrapped


def report(
    runs: Annotated[list[Path], Argument(metavar="RUN...", help="Folders of runs, finished or not.")],
    output: Annotated[
        Path | None, Option(help="The file to write.", show_default="RUN/report.html; of several runs, comparison.html")
    ] = None,
) -> None:
    """Write a run's metrics, curves, images and settings as one HTML page; several runs: one that compares them."""
    from unified_vae.report.page import write_report

    start = time.monotonic()
    page = write_report(runs, output)
    size = f"{page.stat().st_size / 1e6:.1f} MB, in {time.monotonic() - start:.1f} s"
    show(wrapped(f"the page: {page.as_posix()} ({size})", "  "))
