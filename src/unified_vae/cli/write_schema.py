"""Write config/config_unified.schema.json anew: uv run python -m unified_vae.cli.write_schema"""

from __future__ import annotations

import json
from pathlib import Path

from unified_vae.experiment.presets.schema import book_schema

PATH = Path("config") / "config_unified.schema.json"


def schema_text() -> str:
    """The file's content."""
    return json.dumps(book_schema(), indent=2) + "\n"


if __name__ == "__main__":
    PATH.write_text(schema_text(), encoding="utf-8", newline="\n")
    print(f"wrote {PATH}")
