"""How long a user waits: seconds from the start of the process to the first step, to the first sheet, to the exit.

The program is watched from outside, by what it writes: the first entry of metrics.jsonl (each step has one here), the
first sheet below samples/, the end of the process. One life before those that count fills the caches.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from machine import RESULTS
from script import parser, save, settle, start, table

NAME = "startup"
TARGETS = {"first step": 6.0, "exit": 25.0}
LOOKED_EVERY = 0.01  # seconds
SCRIPT = RESULTS.parent.parent / "train.py"


def read_options() -> argparse.Namespace:
    options = parser(NAME, __doc__)
    options.add_argument("--mode", default="quick_test")
    options.add_argument("--repeats", type=int, default=5)
    given = settle(options.parse_args())
    if given.quick:
        given.repeats = 1
    return given


def one_life(options: argparse.Namespace, number: int) -> dict[str, float]:
    """Seconds to each moment of TARGETS, and to the first sheet."""
    run_dir = options.work_dir / f"life-{number}"
    shutil.rmtree(run_dir, ignore_errors=True)
    words = ["--mode", options.mode, "--run-dir", str(run_dir), "--set", "training.log_every_steps=1"]
    moments: dict[str, Callable[[], bool]] = {
        "first step": lambda: _has_a_line(run_dir / "metrics.jsonl"),
        "first sheet": lambda: any(run_dir.glob("samples/*.png")),
    }
    found: dict[str, float] = {}
    begun = time.monotonic()
    with subprocess.Popen([sys.executable, str(SCRIPT), *words], stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            passed = time.monotonic() - begun
            found |= {name: passed for name, seen in moments.items() if name not in found and seen()}
            time.sleep(LOOKED_EVERY)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} ended with exit code {process.returncode}")
    return {**found, "exit": time.monotonic() - begun}


def _has_a_line(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def main() -> None:
    options = read_options()
    lives = [one_life(options, number) for number in range(options.repeats + 1)][1:]
    medians = {moment: round(statistics.median(life[moment] for life in lives), 2) for moment in lives[0]}
    best = {moment: round(min(life[moment] for life in lives), 2) for moment in medians}
    save(options, NAME, {"targets_seconds": TARGETS, "median_seconds": medians, "best_seconds": best, "lives": lives})
    table(
        ["seconds to", "median", "best", "target"],
        [[moment, value, best[moment], TARGETS.get(moment)] for moment, value in medians.items()],
    )


if __name__ == "__main__":
    start(main)
