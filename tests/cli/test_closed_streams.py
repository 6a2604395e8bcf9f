"""Exit codes where the program that read what is said (`| tee log`, `| head`) has gone before the end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

DOOR = Path(__file__).resolve().parents[2] / "train.py"

_SIGNALLED = """
import os, signal, sys, typer
from unified_vae.cli.door import enter

app = typer.Typer(add_completion=False)
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests started with & inherit that it is ignored

def job(_):
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    return 0

@app.command()
def plan():
    return job

raise SystemExit(enter(app, "train.py", []))
"""


def code_of(words: list[str], folder: Path) -> int:
    """The exit code of Python with these words, where nobody reads stdout and stderr."""
    read, write = os.pipe()
    os.close(read)
    try:
        return subprocess.run(
            [sys.executable, *words], cwd=folder, stdout=write, stderr=write, timeout=120, check=False
        ).returncode
    finally:
        os.close(write)


def test_a_mistake_keeps_its_code(tmp_path: Path) -> None:
    assert code_of([str(DOOR), "--mode", "quick"], tmp_path) == 2


def test_what_was_asked_to_be_shown_is_no_failure(tmp_path: Path) -> None:
    assert code_of([str(DOOR), "--list-presets"], tmp_path) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="signals of one's own are others there")
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_outside_of_training_keeps_its_code(name: str, code: int, tmp_path: Path) -> None:
    assert code_of(["-c", _SIGNALLED, name], tmp_path) == code
