"""A wrong config is answered by a process of its own: exit code 2, one line, soon, and without torch."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.fault_rows import report
from tests.helpers.bad_configs import BROKEN, WRONG_VALUES, changed

ROOT = Path(__file__).resolve().parents[2]
BOOKS = [changed(path, value) for path, value, _ in WRONG_VALUES] + [text for text, _ in BROKEN]
EVERY = 24  # of which the usual run asks
HEAVY = {"torch", "torchvision", "numpy", "PIL", "tensorboard", "matplotlib", "datasets"}

_WATCH = """
import runpy, sys, time
begun = time.process_time()
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    code = end.code
print(code, time.process_time() - begun, *{name.partition(".")[0] for name in sys.modules})
"""


def answer(book: str, folder: Path, environment: dict[str, str]) -> tuple[int, str, float, set[str]]:
    """Exit code, what was said, seconds of the processor beyond the interpreter's start, modules loaded."""
    path = folder / "config" / "config_unified.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(book, encoding="utf-8")
    command = [sys.executable, "-c", _WATCH, str(ROOT / "train.py"), "--mode", "m"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=True)
    code, seconds, *modules = done.stdout.split()
    return int(code), done.stderr, float(seconds), set(modules)


@pytest.mark.parametrize("every", [EVERY, pytest.param(1, marks=pytest.mark.long)])
def test_each_is_answered_soon_and_without_torch(every: int, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(tmp_path / "compiled")
    answer(BOOKS[0], tmp_path, environment)  # the first one compiles
    spent = []
    for number, book in enumerate(BOOKS[::every]):
        code, said, seconds, modules = answer(book, tmp_path, environment)
        assert code == 2, f"book {number * every}: {said}"
        assert said.startswith("error: ") and "config/config_unified.json" in said and said.count("\n") == 1, said
        assert not modules & HEAVY and "unified_vae" in modules
        spent.append(seconds)
    slow = sorted(spent)[int(0.95 * (len(spent) - 1))]
    report(
        fault=f"{len(spent)} bad config files, CPU seconds",
        target="exit code 2, file named, no torch import, p95 below 0.5 s",
        result=f"{len(spent)} of {len(spent)}; median {statistics.median(spent):.2f} s, p95 {slow:.2f} s",
    )
