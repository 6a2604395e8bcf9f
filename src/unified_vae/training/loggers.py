"""What a run writes beside its checkpoints: metrics.jsonl, timing.jsonl, skipped.jsonl and TensorBoard."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from unified_vae.core.errors import reason
from unified_vae.core.events import (
    CheckpointSaved,
    ImagesWritten,
    LossesLogged,
    Observer,
    RolledBack,
    RunFinished,
    RunStarted,
    StepSkipped,
    Validated,
)
from unified_vae.core.files import append, sync_file, write_bytes, write_text

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SKIPPED_FILE = "skipped.jsonl"

Hyperparameters = Mapping[str, bool | str | float | int | None]


class MetricsLog:
    """metrics.jsonl: one JSON object per line, each step once, the same bytes after any interruption.

    It holds deterministic numbers only; speed and memory go to timing.jsonl. Rows that a full disk does not take wait
    in memory and are written as soon as it does.

    Attributes:
        rows: rows in the file, those that wait included.
    """

    def __init__(self, path: Path, rows: int, on_message: Callable[[str], None]) -> None:
        """Args:
        path: the file; made if absent.
        rows: how many of its rows to keep: those that belong to the state the run starts from.
        on_message: receives a line when the file cannot be written, and when it can be again.
        """
        self.path = path
        self._on_message = on_message
        self._pending = b""
        self._problem: str | None = None
        self.truncate(rows)

    def truncate(self, rows: int) -> None:
        """Cut off all but the first `rows` complete rows; what was written after them is made anew."""
        self._write_pending()
        self._pending = b""
        self.rows = _keep_rows(self.path, rows)
        self._bytes = self.path.stat().st_size if self.path.exists() else 0

    def write(self, split: str, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Append one row."""
        row = {"split": split, "step": step, "epoch": round(epoch, 4), **values}
        self._pending += (json.dumps(row, allow_nan=False) + "\n").encode()
        self.rows += 1
        self._write_pending()

    def sync(self) -> None:
        """Wait until all rows are on the disk, before a checkpoint counts on them. Any thread may ask.

        Raises:
            OSError: some cannot be written.
        """
        if self._problem is not None:
            raise OSError(0, self._problem, str(self.path))
        if self._bytes:
            sync_file(self.path)

    def close(self) -> None:
        """Try once more to write the rows that wait."""
        self._write_pending()

    def _write_pending(self) -> None:
        if not self._pending:
            return
        try:
            # count anew where somebody else has changed the file, so that a checkpoint names the rows there are
            size = self.path.stat().st_size if self.path.exists() else 0
            if size != self._bytes and self.path.parent.is_dir():
                self._on_message(
                    f"{self.path} was changed by another program: it has {size:,} bytes instead of {self._bytes:,}"
                )
                lines = self.path.read_bytes().count(b"\n") if size else 0
                self.rows, self._bytes = lines + self._pending.count(b"\n"), size
            append(self.path, self._pending)
        except OSError as error:
            if self._problem is None:
                self._on_message(f"{self.path} cannot be written ({reason(error)}): training continues, rows are kept")
            self._problem = reason(error)
            return
        self._bytes, self._pending = self._bytes + len(self._pending), b""
        if self._problem is not None:
            self._problem = None
            self._on_message(f"{self.path} can be written again; the rows that were kept are in it")


class TimingLog(Observer):
    """timing.jsonl: speed and memory, which differ from run to run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writes = str(path)

    def run_started(self, event: RunStarted) -> None:
        self._truncate(event.start_step)

    def rolled_back(self, event: RolledBack) -> None:
        self._truncate(event.step)

    def _truncate(self, step: int) -> None:
        """Drop rows after `step`, and one that a kill has cut."""
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines() if self.path.exists() else []
        kept = []
        for line in lines:
            with suppress(ValueError, KeyError, TypeError):
                if float(json.loads(line)["step"]) <= step:
                    kept.append(line)
        if len(kept) != len(lines):
            write_text(self.path, "".join(f"{line}\n" for line in kept))

    def losses_logged(self, event: LossesLogged) -> None:
        self._append(
            step=event.step,
            images_per_second=round(event.images_per_second, 2),
            data_share=round(event.data_share, 5),
            process_bytes=event.memory.process,
            device_peak_bytes=event.memory.device_peak,
        )

    def validated(self, event: Validated) -> None:
        self._append(step=event.step, validation_seconds=round(event.seconds, 3))

    def checkpoint_saved(self, event: CheckpointSaved) -> None:
        self._append(step=event.step, save_seconds=round(event.seconds, 4), stalled_seconds=round(event.stalled, 4))

    def _append(self, **row: object) -> None:
        append(self.path, (json.dumps(row) + "\n").encode())


class SkippedLog(Observer):
    """skipped.jsonl: a line for each skipped step with its metrics and images, each once after any interruption."""

    def __init__(self, path: Path, rows: int) -> None:
        """Args:
        path: the file; made with the first skipped step.
        rows: lines that belong to the state the run starts from.
        """
        self.path = path
        self.writes = str(path)
        _keep_rows(path, rows)

    def step_skipped(self, event: StepSkipped) -> None:
        row = {
            "step": event.step,
            "epoch": event.epoch,
            "rollbacks": event.rollbacks,
            "not_finite": list(event.metrics),
            "images": list(event.images),
        }
        append(self.path, (json.dumps(row) + "\n").encode())


def _keep_rows(path: Path, rows: int) -> int:
    """Cut off all but the first `rows` complete lines of a file that need not exist; returns how many are left."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines[:rows] if line.endswith(b"\n")]
    if len(kept) != len(lines):
        write_bytes(path, b"".join(kept))
    return len(kept)


def tensorboard_problem(folder: Path) -> str | None:
    """Why TensorBoard cannot be used for a folder, in one sentence; None where it can."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        return "TensorBoard needs a path that is text, and --run-dir holds other bytes: curves go to metrics.jsonl only"
    try:
        import torch.utils.tensorboard  # noqa: F401
    except Exception as error:  # absent, or installed in a way that does not fit together
        return (
            f"TensorBoard is not available ({error}): curves go to metrics.jsonl only. "
            "To add it: uv pip install tensorboard"
        )
    return None


class TensorBoardLogger(Observer):
    """Scalars, images, KL of each unit, hyperparameters. After a resume, entries of the lost part are superseded.

    A file that a full disk ended is left; a new one is begun with the next validation.
    """

    def __init__(self, folder: Path, hyperparameters: Hyperparameters) -> None:
        self.folder = folder
        self.writes = str(folder)
        self.hyperparameters = dict(hyperparameters)
        self._writer: SummaryWriter | None = None

    @contextmanager
    def _open_writer(self, reopen_at: int | None = None) -> Iterator[SummaryWriter | None]:
        """The writer, opened first where a step is given; given up where it cannot be written."""
        from torch.utils.tensorboard import SummaryWriter

        try:
            if reopen_at is not None:
                if not self.folder.parent.is_dir():  # the writer would make it, perhaps on another disk
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.folder.parent))
                self._writer = SummaryWriter(str(self.folder), purge_step=reopen_at)
            yield self._writer
        except OSError:
            self._writer = None
            raise

    def run_started(self, event: RunStarted) -> None:
        facts = "\n".join(f"| {label} | {text} |" for label, text in event.facts)
        with self._open_writer(event.start_step + 1) as writer:
            assert writer is not None
            writer.add_text("run", f"| what | value |\n|---|---|\n{facts}", event.start_step)

    def rolled_back(self, event: RolledBack) -> None:
        if self._writer is not None:
            self._writer.close()
            with self._open_writer(event.step + 1):
                pass

    def losses_logged(self, event: LossesLogged) -> None:
        with self._open_writer() as writer:
            if writer is None:
                return
            scalars = {f"train/{name}": value for name, value in event.values.items()} | {
                "speed/images_per_second": event.images_per_second,
                "speed/data_share": event.data_share,
                "memory/process_gib": event.memory.process / 2**30,
            }
            if event.memory.device_peak is not None:
                scalars["memory/device_peak_gib"] = event.memory.device_peak / 2**30
            for name, value in scalars.items():
                writer.add_scalar(name, value, event.step)

    def validated(self, event: Validated) -> None:
        with self._open_writer(event.step if self._writer is None else None) as writer:
            assert writer is not None
            for name, value in event.values.items():
                writer.add_scalar(f"validation/{name}", value, event.step)
            writer.add_histogram("latents/kl_per_unit", np.asarray(event.kl_per_unit), event.step)
            writer.flush()

    def images_written(self, event: ImagesWritten) -> None:
        with self._open_writer() as writer:
            if writer is not None:
                with Image.open(event.path) as image:
                    writer.add_image(f"sheets/{event.tag}", np.asarray(image), event.step, dataformats="HWC")

    def run_finished(self, event: RunFinished) -> None:
        with self._open_writer() as writer:
            if writer is None:
                return
            if event.values:
                from torch.utils.tensorboard.summary import hparams

                best = {f"best/{name}": value for name, value in event.values.items()}
                known = {name: value for name, value in self.hyperparameters.items() if value is not None}
                for summary in hparams(known, best):
                    writer._get_file_writer().add_summary(summary, event.step)
                for name, value in best.items():
                    writer.add_scalar(name, value, event.step)
            writer.close()
            self._writer = None
