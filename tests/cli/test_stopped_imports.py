"""A stop while a module is imported is never lost, whatever the module does with exceptions."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signals")

_STUBBORN = """
import os, signal, weakref
class Held: pass
def stop(_): os.kill(os.getpid(), signal.{name})
held = Held()
{how}
"""
HOW = {
    "caught": "try:\n    stop(None)\nexcept BaseException:\n    pass",
    "in a callback": "seen = weakref.ref(held, stop)\ndel held",  # as import locks have: Python drops what it raises
}
_PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in a shell's background
import typer
from unified_vae.cli.door import enter
app = typer.Typer()
@app.command()
def command():
    return lambda restart: __import__("stubborn") and 0
raise SystemExit(enter(app, "door", []))
"""


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_it_ends_the_process_with_its_code(name: str, how: str, tmp_path: Path) -> None:
    (tmp_path / "stubborn.py").write_text(_STUBBORN.format(name=name, how=HOW[how]))
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 128 + getattr(signal, name), done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "there was nothing to save" in done.stderr
