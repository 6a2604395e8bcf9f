"""TensorBoard: scalars, pictures, KL of each unit, hyperparameters."""

from __future__ import annotations

from collections.abc import Mapping
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
)

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

HyperParameters = Mapping[str, bool | str | float | int | None]


def tensorboard_problem() -> str | None:
    """Why TensorBoard cannot be used, in one sentence; None where it can."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as problem:
        return (
            f"TensorBoard is not available ({problem}): curves go to metrics.jsonl only. "
            "To add it: uv pip install tensorboard"
        )
    return None


class TensorBoardObserver(Observer):
    """Writes event files. After a resume, entries of the lost stretch are marked as superseded."""

    def __init__(self, folder: Path, hyperparameters: HyperParameters) -> None:
        self.folder = folder
        self.hyperparameters = dict(hyperparameters)
        self._writer: SummaryWriter | None = None

    def run_started(self, event: RunStarted) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.folder), purge_step=event.start_step + 1)
        facts = "\n".join(f"| {label} | {text} |" for label, text in event.facts)
        self._writer.add_text("run", f"| what | value |\n|---|---|\n{facts}", event.start_step)

    def losses_logged(self, event: LossesLogged) -> None:
        for name, value in event.values.items():
            self._scalar(f"train/{name}", value, event.step)
        self._scalar("speed/images_per_second", event.images_per_second, event.step)
        self._scalar("memory/process_gib", event.memory.process / 2**30, event.step)
        if event.memory.device_peak is not None:
            self._scalar("memory/device_peak_gib", event.memory.device_peak / 2**30, event.step)

    def validated(self, event: Validated) -> None:
        for name, value in event.values.items():
            self._scalar(f"validation/{name}", value, event.step)
        if self._writer:
            self._writer.add_histogram("latents/kl_per_unit", np.asarray(event.kl_per_unit), event.step)
            self._writer.flush()

    def sheet_drawn(self, event: SheetDrawn) -> None:
        if self._writer:
            with Image.open(event.path) as picture:
                self._writer.add_image(f"sheets/{event.tag}", np.asarray(picture), event.step, dataformats="HWC")

    def run_finished(self, event: RunFinished) -> None:
        if self._writer is None:
            return
        if event.values:
            from torch.utils.tensorboard.summary import hparams

            figures = {f"best/{name}": value for name, value in event.values.items()}
            known = {name: value for name, value in self.hyperparameters.items() if value is not None}
            for summary in hparams(known, figures):
                self._writer._get_file_writer().add_summary(summary, event.step)
            for name, value in figures.items():
                self._scalar(name, value, event.step)
        self._writer.close()
        self._writer = None

    def _scalar(self, name: str, value: float, step: int) -> None:
        if self._writer:
            self._writer.add_scalar(name, value, step)
