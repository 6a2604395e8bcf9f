"""The committed inventory is what today's code gives, and it is had without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
_SHOW = """
import sys
from tests.golden.inventory import inventory
sys.stdout.write(inventory())
assert "torch" not in sys.modules
"""


def test_the_inventory_is_current() -> None:
    command = [sys.executable, "-X", "utf8", "-c", _SHOW]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    committed = (FOLDER / "inventory.txt").read_text(encoding="utf-8")
    assert done.stdout == committed, "run: uv run python -m tests.golden.inventory"


def test_the_inventory_has_items_of_every_kind() -> None:
    lines = (FOLDER / "inventory.txt").read_text(encoding="utf-8").splitlines()
    for item in (
        "api unified_vae.VAE.latents -> int",
        "command train.py --set: list[str] | null = None",
        "command unified-vae reconstruct IMAGES...: list[Path] required",
        "exit code 4: Diverged",
        "mode quick_test",
        "preset loss mse_l1",
        "setting training.optimizer: adamw | adam | sgd = adamw",
        "environment UNIFIED_VAE_OFFLINE",
    ):
        assert item in lines
