"""docs/extending.md is followed literally: its code is put where it says, and what it promises holds."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]


def code_of(section: str) -> list[str]:
    """The Python blocks of a section, in order."""
    text = (ROOT / "docs" / "extending.md").read_text("utf-8")
    body = text.partition(f"## {section}\n")[2].partition("\n## ")[0]
    return [textwrap.dedent(block) for block in re.findall(r"^ *```python\n(.*?)^ *```", body, re.S | re.M)]


def test_a_loss_term_is_a_class_and_a_field(tmp_path: Path) -> None:
    """A copy of the sources with both passes the tests of every term."""
    sources = tmp_path / "src"
    shutil.copytree(ROOT / "src", sources, ignore=shutil.ignore_patterns("__pycache__"))
    settings, field, term = code_of("A loss term")
    config = sources / "unified_vae" / "config" / "loss.py"
    text = config.read_text("utf-8").replace("class KLConfig(", f"{settings}\n\nclass KLConfig(")
    config.write_text(text.replace("    kl: KLConfig", f"    {field}    kl: KLConfig"), "utf-8")
    pixel = sources / "unified_vae" / "losses" / "pixel.py"
    text = pixel.read_text("utf-8").replace("import CharbonnierConfig", "import CharbonnierConfig, HuberConfig")
    pixel.write_text(f"{text.replace('import Tensor', 'import Tensor, nn')}\n\n{term}", "utf-8")

    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        "tests/losses/test_terms.py",
        "-k",
        "huber",
    ]
    environment = {**os.environ, "PYTHONPATH": str(sources)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) >= 13
