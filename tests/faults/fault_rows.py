"""Figures that tests of faults find, collected for the table in docs/reliability.md."""

from __future__ import annotations

import json
import os
from pathlib import Path

TABLE = "UNIFIED_VAE_FAULT_TABLE"
"""Environment variable: the file that figures are added to, one JSON object a line. Unset, they are dropped."""


def report(*, fault: str, target: str, result: str) -> None:
    """Add a row to the table."""
    path = os.environ.get(TABLE)
    if path:
        row = json.dumps({"fault": fault, "target": target, "result": result}, ensure_ascii=False)
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(row + "\n")
