"""TensorBoard: scalars, pictures, KL of each unit, hyperparameters."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from unified_vae.training.observers import (
    LossesLogged,
    Observer,
    RunFinished,
    RunStarted,
    SheetDrawn,
    Validated,
    WentBack,
)

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

HyperParameters = Mapping[str, bool | str | float | int | None]


def tensorboard_problem(folder: Path) -> str | None:
    """Why TensorBoard cannot be used for a folder, in one sentence; None where it can."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        return "TensorBoard needs a path that is text, and --run-dir holds other bytes: curves go to metrics.jsonl only"
    try:
        import torch.utils.tensorboard  # noqa: F401
    except Exception as problem:  # absent, or installed in a way that does not fit together
        return (
            f"TensorBoard is not available ({problem}): curves go to metrics.jsonl only. "
            "To add it: uv pip install tensorboard"
        )
    return None


class TensorBoardObserver(Observer):
    """Writes event files. After a resume, entries of the lost stretch are marked as superseded.

    A file that a full disk ended is left; a new one is begun with the next validation.
    """

    def __init__(self, folder: Path, hyperparameters: HyperParameters) -> None:
        self.folder = folder
        self.keeps = str(folder)
        self.hyperparameters = dict(hyperparameters)
        self._writer: SummaryWriter | None = None
        self._ended = False

    def run_started(self, event: RunStarted) -> None:
        facts = "\n".join(f"| {label} | {text} |" for label, text in event.facts)
        with self._watched():
            self._open(event.start_step + 1)
            assert self._writer is not None
            self._writer.add_text("run", f"| what | value |\n|---|---|\n{facts}", event.start_step)

    def went_back(self, event: WentBack) -> None:
        if self._writer is not None:
            with self._watched():
                self._writer.close()
                self._open(event.step + 1)

    def _open(self, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        _say_nothing_from_its_thread()
        if not self.folder.parent.is_dir():  # the writer would make it, perhaps on another disk than the one that went
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.folder.parent))
        self._writer = SummaryWriter(str(self.folder), purge_step=first_step)
        self._ended = False

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Give the file up where it cannot be written."""
        try:
            yield
        except OSError:
            self._writer, self._ended = None, True
            raise

    def losses_logged(self, event: LossesLogged) -> None:
        with self._watched():
            self._log(event)

    def _log(self, event: LossesLogged) -> None:
        for name, value in event.values.items():
            self._scalar(f"train/{name}", value, event.step)
        self._scalar("speed/images_per_second", event.images_per_second, event.step)
        self._scalar("speed/data_share", event.data_share, event.step)
        self._scalar("memory/process_gib", event.memory.process / 2**30, event.step)
        if event.memory.device_peak is not None:
            self._scalar("memory/device_peak_gib", event.memory.device_peak / 2**30, event.step)

    def validated(self, event: Validated) -> None:
        with self._watched():
            if self._ended:
                self._open(event.step)
            self._log_validation(event)

    def _log_validation(self, event: Validated) -> None:
        for name, value in event.values.items():
            self._scalar(f"validation/{name}", value, event.step)
        if self._writer:
            self._writer.add_histogram("latents/kl_per_unit", np.asarray(event.kl_per_unit), event.step)
            self._writer.flush()

    def sheet_drawn(self, event: SheetDrawn) -> None:
        if self._writer:
            with self._watched(), Image.open(event.path) as picture:
                self._writer.add_image(f"sheets/{event.tag}", np.asarray(picture), event.step, dataformats="HWC")

    def run_finished(self, event: RunFinished) -> None:
        if self._writer is not None:
            with self._watched():
                self._finish(self._writer, event)

    def _finish(self, writer: SummaryWriter, event: RunFinished) -> None:
        if event.values:
            from torch.utils.tensorboard.summary import hparams

            figures = {f"best/{name}": value for name, value in event.values.items()}
            known = {name: value for name, value in self.hyperparameters.items() if value is not None}
            for summary in hparams(known, figures):
                writer._get_file_writer().add_summary(summary, event.step)
            for name, value in figures.items():
                self._scalar(name, value, event.step)
        writer.close()
        self._writer = None

    def _scalar(self, name: str, value: float, step: int) -> None:
        if self._writer:
            self._writer.add_scalar(name, value, step)


def _say_nothing_from_its_thread() -> None:
    """The thread that writes hands its error on to whoever writes next; printed as well, it would look like a crash."""
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if type(args.thread).__name__ != "_AsyncWriterThread" or not isinstance(args.exc_value, OSError):
            before(args)

    threading.excepthook = hook
