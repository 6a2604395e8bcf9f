"""The console command `unified-vae`: help without words, its own name in what to run next, no torch to say so."""

from __future__ import annotations

import subprocess
import sys

import pytest

from unified_vae.cli import main as command
from unified_vae.cli.door import Job, enter


def test_without_words_it_shows_its_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/unified-vae"])
    assert command.main() == 0
    out, error = capsys.readouterr()
    assert out.startswith("Usage: unified-vae") and error == ""
    for verb in command.VERBS:
        assert f"\n  {verb.__name__} " in out


@pytest.mark.parametrize(
    ("script", "called", "expected"),
    [
        ("unified-vae", "/home/me/.venv/bin/unified-vae", "uv run unified-vae sample x"),
        ("unified-vae", "C:/venv/Scripts/unified-vae.exe", "uv run unified-vae sample x"),
        ("train.py", "../train.py", "uv run ../train.py sample x"),
    ],
)
def test_the_next_command_can_be_typed(
    monkeypatch: pytest.MonkeyPatch, script: str, called: str, expected: str
) -> None:
    given: list[str] = []

    def parse(**_: object) -> Job:
        return lambda line: given.append(line) or 0

    monkeypatch.setattr(sys, "argv", [called, "sample", "x"])
    assert enter(parse, script) == 0  # type: ignore[arg-type]
    assert given == [expected]


def test_help_of_every_verb_answers_without_torch() -> None:
    script = (
        "import sys; from unified_vae.cli.main import PROGRAM, VERBS, app; from unified_vae.cli.door import enter\n"
        "assert all(enter(app, PROGRAM, [verb.__name__, '--help']) == 0 for verb in VERBS)\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
