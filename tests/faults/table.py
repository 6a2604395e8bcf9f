"""Inject the faults by the thousand, and put what came of them into docs/reliability.md:

    uv run python -m tests.faults.table            all of them: hours
    uv run python -m tests.faults.table -k fuzz    some of them, words as for pytest; their rows alone are replaced

Each test that reports a figure gives a row; a test that fails leaves the page as it is.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
PLACES = ("faults", "training/test_exact_resume.py")
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- fault table: begin -->", "<!-- fault table: end -->"
HEADING = ["| fault | target | result | date |", "|---|---|---|---|"]


def run(words: list[str], figures: Path) -> int:
    """The tests that give figures, one after the other: instants of faults are to be spread as they are meant to be."""
    pytest = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-m", "long or figure"]
    command = [*pytest, *(str(ROOT / "tests" / place) for place in PLACES), *words]
    return subprocess.run(command, env={**os.environ, "UNIFIED_VAE_FAULT_TABLE": str(figures)}, check=False).returncode


def rows_of(page: str) -> dict[str, str]:
    """The rows that the page has, by fault."""
    inside = page.partition(BEGIN)[2].partition(END)[0]
    lines = [line for line in inside.splitlines() if line.startswith("| ") and line not in HEADING]
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines}


def rewritten(page: str, result: list[dict[str, str]], day: str) -> str:
    """The page with these rows in place of earlier ones of the same faults."""
    rows = rows_of(page)
    for entry in result:
        rows[entry["fault"]] = f"| {entry['fault']} | {entry['target']} | {entry['result']} | {day} |"
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n" + "\n".join([*HEADING, *sorted(rows.values())]) + f"\n{END}{after}"


def main() -> int:
    if not all(mark in PAGE.read_text(encoding="utf-8") for mark in (BEGIN, END)):
        print(f"error: {PAGE.name} has no place for the table: put {BEGIN} and {END} there", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.jsonl"
        code = run(sys.argv[1:], figures)
        text = figures.read_text(encoding="utf-8") if figures.is_file() else ""
    result = [json.loads(line) for line in text.splitlines()]
    for entry in result:
        print(f"{entry['fault']}: {entry['result']}")
    if code or not result:
        print("error: the page stays as it is, since tests failed or none reported a figure", file=sys.stderr)
        return code or 2
    page = PAGE.read_text(encoding="utf-8")  # as it is now, hours later
    PAGE.write_text(rewritten(page, result, datetime.date.today().isoformat()), encoding="utf-8")
    print(f"{len(result)} rows written: {PAGE.relative_to(ROOT)} (torch {torch.__version__}, {platform.system()})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
