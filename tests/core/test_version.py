"""One version for source tree and wheel, and a source tree runs without being installed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import unified_vae

ROOT = Path(__file__).parents[2]
NOT_INSTALLED = f"""
import json
import runpy
import sys
from importlib import metadata
from pathlib import Path

find = metadata.Distribution.from_name.__func__

def from_name(cls, name):
    if name.replace("_", "-") == "unified-vae":
        raise metadata.PackageNotFoundError(name)
    return find(cls, name)

metadata.Distribution.from_name = classmethod(from_name)

from unified_vae.core.device import environment
from unified_vae.export import export
from unified_vae.report import page
from unified_vae.core import checkpoint_format

checkpoint_format.save(Path("checkpoints"), checkpoint_format.Checkpoint(3, {{}}, {{}}))
print(json.dumps(environment()), flush=True)
sys.argv = ["train.py", "--mode", "quick_test", "--dry-run"]
runpy.run_path({str(ROOT / "train.py")!r}, run_name="__main__")
"""


@pytest.mark.slow
def test_source_tree_runs_without_being_installed(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", NOT_INSTALLED],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, _, table = done.stdout.partition("\n")
    assert json.loads(first)["unified-vae"] == unified_vae.__version__
    assert "quick_test" in table
    (manifest,) = tmp_path.glob("checkpoints/*/MANIFEST.json")
    written = json.loads(manifest.read_text(encoding="utf-8"))
    assert written["written_by"] == f"unified-vae {unified_vae.__version__}"


def test_nothing_asks_for_an_installed_unified_vae() -> None:
    asks = re.compile(r"""(version|distribution|metadata|files)\(["']unified[-_]vae["']\)""")
    sources = [path for path in (ROOT / "src").rglob("*.py") if asks.search(path.read_text(encoding="utf-8"))]
    assert sources == []


def test_builds_take_the_version_of_the_source_tree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["version"] and "version" not in project["project"]
    text = (ROOT / project["tool"]["hatch"]["version"]["path"]).read_text(encoding="utf-8")
    match = re.search(r"""(?im)^(__version__|VERSION) *= *(['"])v?(?P<version>.+?)\2""", text)  # as hatchling looks
    assert match and match["version"] == unified_vae.__version__
    try:
        installed = version("unified-vae")
    except PackageNotFoundError:
        return
    assert installed == unified_vae.__version__, "install the tree again"
