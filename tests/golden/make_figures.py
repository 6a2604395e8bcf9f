"""Write figures.json anew, the numbers that test_golden.py compares with, by the code of the working tree.

    python -m tests.golden.make_figures

A commit that moves a figure says which and why.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from tests.golden.cases import CASES
from tests.golden.compare import HERE, TREE, finish, start

FIGURES = HERE / "figures.json"


def main() -> int:
    """Run all cases and write their figures; prints those that moved."""
    with tempfile.TemporaryDirectory(prefix="unified-vae-golden-") as folder:
        results = finish(start(TREE, Path(folder), []), Path(folder))["cases"]
    before = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.exists() else {}
    stored = {}
    for name, case in CASES.items():
        if "failed" in results[name]:
            print(f"{name} failed, and figures.json stays as it was: {results[name]['failed']}")
            return 1
        figures = results[name]["figures"]
        stored[name] = {"quick": case.quick, "tolerance": case.tolerance, "figures": figures}
        for figure, value in figures.items():
            old = before.get(name, {}).get("figures", {}).get(figure)
            if old is None or abs(value - old) > case.tolerance * abs(old):
                print(f"{name}: {figure} was {old}, is {value}")
    FIGURES.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
