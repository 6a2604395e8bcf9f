"""Help, listings and config errors load no torch: they cost a few times what typer and pydantic do.

So do the settings that `--dry-run` shows; what the model costs comes below them when torch was loaded to count it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "torchvision", "torchmetrics", "datasets", "tensorboard", "numpy", "PIL", "matplotlib", "rich"}

_ALL = """
import contextlib, io, json, sys
from unified_vae.cli.app import VERBS, main
commands = json.loads(sys.argv[1]) + [("unified-vae", [verb, "--help"]) for verb in VERBS]
codes = []
for program, argv in commands:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        codes.append(main(program, argv))
print(json.dumps([codes, sorted({name.partition(".")[0] for name in sys.modules})]))
"""
COMMANDS = {
    ("train.py", "--help"): 0,
    ("train_unified.py", "--list-presets"): 0,
    ("diagnose.py", "--help"): 0,
    ("diagnose.py", "runs/none"): 2,
    ("train.py", "--mode", "quick_test", "--dry-run", "--set", "data.source=none.zip"): 2,
    ("train.py", "--mode", "quick_test", "--set", "loss.kl.weight=x"): 2,
    ("unified-vae", "--help"): 0,
    ("unified-vae", "edit", "x", "--labels", "builtin"): 2,
}

MOST_OWN_MODULES, MOST_OTHER_MODULES = 35, 120
_MODULES = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    print("exit", end.code or 0, file=sys.stderr)
print(*sys.modules)
"""


def test_no_heavy_library_is_loaded(tmp_path: Path) -> None:
    argument = json.dumps([(program, argv) for program, *argv in COMMANDS])
    command = [sys.executable, "-c", _ALL, argument]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    codes, loaded = json.loads(done.stdout)
    assert codes[: len(COMMANDS)] == list(COMMANDS.values()) and not any(codes[len(COMMANDS) :])
    assert "unified_vae" in loaded and not HEAVY & set(loaded)


@pytest.mark.parametrize("script", ["train.py", "train_unified.py", "diagnose.py"])
def test_each_script_is_its_program(script: str) -> None:
    source = (ROOT / script).read_text(encoding="utf-8")
    assert f'main("{script}")' in source and len(source.splitlines()) <= 13


def test_help_imports_no_module_of_a_verb(tmp_path: Path) -> None:
    program = (
        "import sys; from unified_vae.cli.app import main; main('unified-vae', ['--help'])\n"
        "assert not [name for name in sys.modules if name.startswith('unified_vae.cli.commands')]"
    )
    subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=True)


def test_a_dry_run_shows_the_settings_before_it_loads_torch(commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "unified_vae.analysis.model_cost", None)
    with pytest.raises(ImportError):
        commands.train("--mode", "quick_test", "--dry-run")
    assert "run folder: runs/quick_test" in commands.capsys.readouterr().out


def test_a_config_error_imports_few_modules(tmp_path: Path) -> None:
    """Beside those of its two libraries: what a start costs is what it imports."""
    bare = "import typer, sys\nfrom pydantic import BaseModel\nprint(*sys.modules)\n"
    libraries = subprocess.run([sys.executable, "-c", bare], capture_output=True, text=True, timeout=60, check=True)
    command = [sys.executable, "-c", _MODULES, str(ROOT / "train.py"), "--mode", "quick"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.splitlines() == ["error: there is no mode 'quick'. Did you mean 'quick_test'?", "exit 2"]
    further = set(done.stdout.split()) - set(libraries.stdout.split())
    own = {name for name in further if name.partition(".")[0] == "unified_vae"}
    assert 0 < len(own) <= MOST_OWN_MODULES and len(further - own) <= MOST_OTHER_MODULES, sorted(further)
