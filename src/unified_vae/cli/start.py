"""From a plan to a run under way: show what it is, set up those who watch, hand it to the experiment."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from contextlib import ExitStack

from unified_vae.cli.display import config_lines
from unified_vae.cli.log_file import LogFile
from unified_vae.cli.options import Shared
from unified_vae.cli.run_lines import RunLines
from unified_vae.experiment.plan import Plan, check
from unified_vae.experiment.request import RunRequest


def show(lines: Iterable[str]) -> int:
    """Print lines; the exit code of having done so, also where the reader has gone, as `head` does."""
    try:
        print("\n".join(lines), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def start(plan: Plan, shared: Shared, command: str) -> int:
    """Start the planned run, or only show it with `--dry-run`; gives the exit code."""
    lines = config_lines(plan.run)
    check(plan)
    if shared.dry_run:
        return show([*lines, "", f"run folder: {plan.run_dir.as_posix()}", "--dry-run: nothing was started"])
    request = RunRequest(plan.run, plan.run_dir, shared.resume, command, plan.fix_from)
    with ExitStack() as open_until_the_end:
        watchers = [] if _is_follower() else [to_screen(), LogFile(command)]
        for watcher in watchers:
            open_until_the_end.callback(watcher.close)
            watcher.show(lines)
        from unified_vae.experiment.fit import (
            fit,
        )  # imports torch: seconds, so only now that the config is good

        return fit(request, watchers).exit_code


def to_screen() -> RunLines:
    """Bars on a terminal, plain lines in a pipe or a file."""
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        from unified_vae.cli.progress import TerminalProgress

        return TerminalProgress()
    return RunLines(sys.stdout)


def _is_follower() -> bool:
    """Under torchrun every rank but the first keeps silent."""
    return int(os.environ.get("RANK", "0")) > 0
