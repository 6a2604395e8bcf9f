"""The plain metrics file: one JSON object a line, each step once, the same bytes after any interruption.

It holds deterministic numbers only. Speed and memory, which differ from run to run, go to `timing.jsonl`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

from unified_vae.core.durable import append, reason, sync_file, write_bytes, write_text
from unified_vae.training.observers import CheckpointSaved, LossesLogged, Observer, RunStarted, Validated, WentBack


class MetricsLog:
    """Appends rows; on resume, rows that a lost stretch of the run had written are cut off.

    Rows that a full disk does not take wait in memory and are written as soon as it does.

    Attributes:
        rows: rows in the file, those that wait included.
    """

    def __init__(self, path: Path, rows: int, notice: Callable[[str], None]) -> None:
        """Args:
        path: the file; made if absent.
        rows: how many of its rows to keep.
        notice: told when it cannot be written, and when it can be again.
        """
        self.path = path
        self.rows = _keep(path, rows)
        self._bytes = path.stat().st_size if path.exists() else 0
        self._waiting = b""
        self._problem: str | None = None
        self._notice = notice

    def write(self, split: str, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """One row."""
        row = {"split": split, "step": step, "epoch": round(epoch, 4), **values}
        self._waiting += (json.dumps(row, allow_nan=False) + "\n").encode()
        self.rows += 1
        self._try_again()

    def sync(self) -> None:
        """Wait until all rows are on the disk, before a checkpoint counts on them. Any thread may ask.

        Raises:
            OSError: some cannot be written.
        """
        if self._problem is not None:
            raise OSError(0, self._problem, str(self.path))
        if self._bytes:
            sync_file(self.path)

    def go_back(self, rows: int) -> None:
        """Cut off all but the first `rows` rows; what was written after them is made anew."""
        self._try_again()
        self._waiting = b""
        self.rows = _keep(self.path, rows)
        self._bytes = self.path.stat().st_size if self.path.exists() else 0

    def close(self) -> None:
        """No more rows; those that wait get a last try."""
        self._try_again()

    def _try_again(self) -> None:
        if not self._waiting:
            return
        try:
            self._look()
            append(self.path, self._waiting)
        except OSError as problem:
            self._fail(reason(problem))
            return
        self._bytes, self._waiting = self._bytes + len(self._waiting), b""
        if self._problem is not None:
            self._problem = None
            self._notice(f"{self.path} can be written again; the rows that waited are in it")

    def _fail(self, why: str) -> None:
        if self._problem is None:
            self._notice(f"{self.path} cannot be written ({why}): training goes on, the rows wait in memory")
        self._problem = why

    def _look(self) -> None:
        """Count anew where somebody else has changed the file, so that a checkpoint tells the rows there are."""
        found = self.path.stat().st_size if self.path.exists() else 0
        if found != self._bytes and self.path.parent.is_dir():
            self._notice(f"{self.path} was changed by somebody else: it has {found:,} bytes instead of {self._bytes:,}")
            there = self.path.read_bytes().count(b"\n") if found else 0
            self.rows, self._bytes = there + self._waiting.count(b"\n"), found


def _keep(path: Path, rows: int) -> int:
    """Cut the file after its first `rows` complete lines; returns how many it has."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines[:rows] if line.endswith(b"\n")]
    if len(kept) != len(lines):
        write_bytes(path, b"".join(kept))
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
        self.keeps = str(path)

    def run_started(self, event: RunStarted) -> None:
        self._cut(event.start_step)

    def went_back(self, event: WentBack) -> None:
        self._cut(event.step)

    def _cut(self, step: int) -> None:
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines() if self.path.exists() else []
        kept = [line for line in lines if _step_of(line) <= step]
        if len(kept) != len(lines):
            write_text(self.path, "".join(f"{line}\n" for line in kept))

    def losses_logged(self, event: LossesLogged) -> None:
        self._append(
            {
                "step": event.step,
                "images_per_second": round(event.images_per_second, 2),
                "data_share": round(event.data_share, 5),
                "process_bytes": event.memory.process,
                "device_peak_bytes": event.memory.device_peak,
            }
        )

    def validated(self, event: Validated) -> None:
        self._append({"step": event.step, "validation_seconds": round(event.seconds, 3)})

    def checkpoint_saved(self, event: CheckpointSaved) -> None:
        seconds = {"save_seconds": round(event.seconds, 4), "stalled_seconds": round(event.stalled, 4)}
        self._append({"step": event.step, **seconds})

    def _append(self, row: Mapping[str, object]) -> None:
        append(self.path, (json.dumps(row) + "\n").encode())
