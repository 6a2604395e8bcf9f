"""The plain metrics file: one JSON object a line, each step once, the same bytes after any interruption.

It holds deterministic numbers only. Speed and memory, which differ from run to run, go to `timing.jsonl`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from unified_vae.core.durable import write_text
from unified_vae.training.observers import LossesLogged, Observer, RunStarted, Validated


class MetricsLog:
    """Appends rows; on resume, rows that a lost stretch of the run had written are cut off.

    Attributes:
        rows: rows in the file.
    """

    def __init__(self, path: Path, rows: int) -> None:
        self.path = path
        self.rows = _keep(path, rows)
        self._file = path.open("a", encoding="utf-8", newline="\n")

    def write(self, split: str, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """One row."""
        row = {"split": split, "step": step, "epoch": round(epoch, 4), **values}
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()
        self.rows += 1

    def sync(self) -> None:
        """Wait until all rows are on the disk, before a checkpoint counts on them."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """No more rows."""
        self._file.close()


def _keep(path: Path, rows: int) -> int:
    """Cut the file after its first `rows` complete lines; returns how many it has."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines[:rows] if line.endswith(b"\n")]
    if len(kept) != len(lines):
        stage = path.with_name(f".tmp-{path.name}")
        stage.write_bytes(b"".join(kept))
        stage.replace(path)
    return len(kept)


def _step_of(line: str) -> float:
    """The step of a row; infinity for a row that a kill has cut."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


class TimingLog(Observer):
    """Speed and memory beside the metrics file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def run_started(self, event: RunStarted) -> None:
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        kept = [line for line in lines if _step_of(line) <= event.start_step]
        if len(kept) != len(lines):
            write_text(self.path, "".join(f"{line}\n" for line in kept))

    def losses_logged(self, event: LossesLogged) -> None:
        self._append(
            {
                "step": event.step,
                "images_per_second": round(event.images_per_second, 2),
                "process_bytes": event.memory.process,
                "device_peak_bytes": event.memory.device_peak,
            }
        )

    def validated(self, event: Validated) -> None:
        self._append({"step": event.step, "validation_seconds": round(event.seconds, 3)})

    def _append(self, row: Mapping[str, object]) -> None:
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(row) + "\n")
