"""Help, listings and config errors come without torch: they cost a few times what typer, rich and pydantic do.

So do the settings that `--dry-run` shows; what the model costs comes below them when torch was loaded to count it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "torchvision", "torchmetrics", "datasets", "tensorboard", "numpy", "PIL", "matplotlib"}

_WATCH = """
import runpy, sys, time
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    print("exit", end.code or 0, file=sys.stderr)
print("seconds", time.process_time(), file=sys.stderr)
print("loaded", *sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["train.py", "--help"], 0),
        (["train_unified.py", "--list-presets"], 0),
        (["diagnose.py", "--help"], 0),
        (["diagnose.py", "runs/none"], 2),
        (["train.py", "--mode", "quick_test", "--dry-run", "--set", "data.source=none.zip"], 2),
        (["train.py", "--mode", "quick_test", "--set", "loss.kl.weight=x"], 2),
    ],
)
def test_no_heavy_library_is_loaded(words: list[str], code: int, tmp_path: Path) -> None:
    script, *options = words
    command = [sys.executable, "-c", _WATCH, str(ROOT / script), *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    lines = done.stderr.strip().split("\n")
    loaded = set(next(line for line in lines if line.startswith("loaded ")).split())
    assert f"exit {code}" in lines
    assert "unified_vae" in loaded
    assert not HEAVY & loaded


def test_a_dry_run_shows_the_settings_before_it_loads_torch(door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "unified_vae.experiment.model_figures", None)
    with pytest.raises(ImportError):
        door.mode("--mode", "quick_test", "--dry-run")
    assert "run folder: runs/quick_test" in door.capsys.readouterr().out


def test_a_config_error_costs_little_more_than_the_libraries_that_read_the_command_line(tmp_path: Path) -> None:
    """In time of the processor, start included, as a ratio: a slow machine is slow for both."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(tmp_path / "compiled")
    bare = tmp_path / "bare.py"
    bare.write_text("import rich.console, typer\nfrom pydantic import BaseModel\n")
    ours, theirs = [], []
    for _ in range(4):  # the first one compiles
        for script, seconds in ((ROOT / "train.py", ours), (bare, theirs)):
            command = [sys.executable, "-c", _WATCH, str(script), "--mode", "quick"]
            done = subprocess.run(
                command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=True
            )
            *answer, spent, _ = done.stderr.strip().split("\n")
            if seconds is ours:
                assert answer == ["error: there is no mode 'quick'. Did you mean 'quick_test'?", "exit 2"]
            assert done.stdout == ""
            seconds.append(float(spent.removeprefix("seconds ")))
    assert min(ours) < 5 * min(theirs)  # 2.5 where this was written; torch alone would make it 70
