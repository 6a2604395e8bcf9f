"""The entry point: help, exit codes, restart commands, errors as one line, closed streams, signals before training."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from unified_vae.cli import app

TRAIN = Path(__file__).resolve().parents[2] / "train.py"

_PROGRAM = """
import signal, sys, types
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in a shell's background
from unified_vae.cli import app
module = types.ModuleType("unified_vae.cli.train")
def train(): import stubborn
module.train = train
sys.modules[module.__name__] = module
raise SystemExit(app.main("train.py", []))
"""
_STOPPED = """
import os, signal, weakref
class Held: pass
def stop(_): os.kill(os.getpid(), signal.{name})
held = Held()
{how}
"""
IMPORTS_THAT_STOP = {
    "raised": "stop(None)",
    "caught": "try:\n    stop(None)\nexcept BaseException:\n    pass",
    "in a callback": "seen = weakref.ref(held, stop)\ndel held",  # as import locks have: Python drops what it raises
}


def test_without_arguments_it_shows_its_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/unified-vae"])
    assert app.main() == 0
    out, error = capsys.readouterr()
    assert out.startswith("Usage: unified-vae") and error == ""
    assert all(f"\n  {verb} " in out for verb in app.VERBS)


@pytest.mark.parametrize(
    ("program", "called", "expected"),
    [
        ("unified-vae", "/home/me/.venv/bin/unified-vae", "uv run unified-vae sample x"),
        ("unified-vae", "C:/venv/Scripts/unified-vae.exe", "uv run unified-vae sample x"),
        ("train.py", "../train.py", "uv run ../train.py sample x"),
    ],
)
def test_the_restart_command_can_be_typed(
    monkeypatch: pytest.MonkeyPatch, program: str, called: str, expected: str
) -> None:
    restarts: list[str] = []

    def parse(program: str, argv: list[str], restart: str) -> int:
        restarts.append(restart)
        return 0

    monkeypatch.setattr(app, "parse", parse)
    monkeypatch.setattr(sys, "argv", [called, "sample", "x"])
    assert app.main(program) == 0
    assert restarts == [expected]


def test_a_misspelled_verb_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main("unified-vae", ["smaple"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "'sample'" in error


def test_details_are_shown_below_the_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert app._fail("a\n  sentence", 2, ["  setting", "  model.latents"]) == 2
    assert capsys.readouterr().err == "error: a sentence\n  setting\n  model.latents\n"


@pytest.mark.parametrize(("argv", "code"), [(["--mode", "quick"], 2), (["--list-presets"], 0)])
def test_exit_codes_where_nobody_reads(argv: list[str], code: int, tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, str(TRAIN), *argv], cwd=tmp_path, stdout=write, stderr=write, timeout=120, check=False
        )
    finally:
        os.close(write)
    assert done.returncode == code


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize(
    ("name", "how", "is_read"),
    [
        ("SIGTERM", "raised", False),
        ("SIGINT", "raised", False),
        ("SIGTERM", "caught", True),
        ("SIGINT", "caught", True),
        ("SIGTERM", "in a callback", True),
        ("SIGINT", "in a callback", True),
    ],
)
def test_a_signal_during_an_import_ends_the_process(name: str, how: str, is_read: bool, tmp_path: Path) -> None:
    """Whatever the module does with exceptions, and where nobody reads stdout and stderr any more."""
    (tmp_path / "stubborn.py").write_text(_STOPPED.format(name=name, how=IMPORTS_THAT_STOP[how]))
    read, write = os.pipe()
    if not is_read:
        os.close(read)
    command = [sys.executable, "-c", _PROGRAM]
    done = subprocess.run(command, cwd=tmp_path, stdout=write, stderr=write, timeout=60, check=False)
    os.close(write)
    assert done.returncode == {"SIGTERM": 143, "SIGINT": 130}[name]
    if is_read:
        with os.fdopen(read) as stream:
            text = stream.read()
        assert text.startswith("error: ") and text.count("\n") == 1
        assert "there was nothing to save" in text


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_outside_of_imports_keeps_its_code(name: str, code: int, tmp_path: Path) -> None:
    program = _PROGRAM.replace("import stubborn", f"import os; os.kill(os.getpid(), signal.{name})")
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", program], stdout=write, stderr=write, timeout=60, check=False)
    os.close(write)
    assert done.returncode == code
