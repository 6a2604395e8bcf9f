"""A run as lines of plain text, one an epoch and one each half minute: for pipes and log files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TextIO

from unified_vae.cli.display import finished_lines, started_lines
from unified_vae.cli.text import gibibytes, joined, number, wrapped
from unified_vae.cli.time_left import PhasePace, TimeLeft, clock_text
from unified_vae.core.events import (
    LossesLogged,
    Memory,
    Observer,
    RolledBack,
    RunFinished,
    RunStarted,
    StepDone,
    Validated,
)

HEARTBEAT_SECONDS = 30.0


class RunLines(Observer):
    """Writes the events of a run to a stream.

    A stream that can no longer be written, such as a closed pipe, is left alone from then on: those who watch
    a run do not end it.
    """

    heartbeat: float | None = HEARTBEAT_SECONDS

    def __init__(self, stream: TextIO | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream = stream
        self.clock = clock
        self.time_left = TimeLeft(clock)
        self.started: RunStarted | None = None
        self.logged: LossesLogged | None = None
        self._last_line = clock()
        self._phase = ""
        self.phase_pace = PhasePace(clock)

    def close(self) -> None:
        """Nothing more will be written."""

    def show(self, lines: Iterable[str]) -> None:
        """Write lines as they are."""
        for line in lines:
            self.write_line(line)
        self._last_line = self.clock()

    def write_line(self, line: str) -> None:
        """Write one line; where it goes is what the kinds of RunLines differ in."""
        if self.stream is None:
            return
        try:
            print(line, file=self.stream, flush=True)
        except (OSError, ValueError):  # ValueError: the stream was closed
            self.stream = None

    def phase(self, text: str, done: int, total: int | None) -> None:
        pace = self.phase_pace.words(text, done, total)
        if text == self._phase and done != total and not self._heartbeat_due():
            return
        self._phase = text
        count = f": {done:,} of {total:,}" if total else f": {done:,}" if done else ""
        self.show(wrapped(", ".join([f"{text}{count}", *pace]), "  "))

    def notice(self, text: str) -> None:
        self.show(wrapped(f"note: {text}", "      "))

    def run_started(self, event: RunStarted) -> None:
        self.started = event
        self.show(started_lines(event))

    def step_done(self, event: StepDone) -> None:
        self.time_left.step(event.step)

    def losses_logged(self, event: LossesLogged) -> None:
        self.logged = event
        if self._heartbeat_due():
            self.show(self._pace_lines(event))

    def validated(self, event: Validated) -> None:
        self.show(self._epoch_lines(event))

    def rolled_back(self, event: RolledBack) -> None:
        self.time_left = TimeLeft(self.clock)

    def run_finished(self, event: RunFinished) -> None:
        self.show(finished_lines(event))

    def _heartbeat_due(self) -> bool:
        return self.heartbeat is not None and self.clock() - self._last_line >= self.heartbeat

    def _epoch_lines(self, event: Validated) -> list[str]:
        values = event.values
        cells = [f"epoch {event.epoch}/{self.epochs()}"]
        if "psnr" in values:
            cells.append(f"PSNR {values['psnr']:.2f} dB{' best' if event.best else ''}")
        if "psnr.above_pca" in values:
            above = values["psnr.above_pca"]
            cells.append(f"{abs(above):.1f} dB {'over' if above >= 0 else 'below'} PCA")
        if "sharpness" in values:
            cells.append(f"sharp {values['sharpness']:.2f}")
        if "rate.nats" in values:
            cells.append(f"KL {number(values['rate.nats'])} nats")
        if "posterior.gap" in values:
            cells.append(f"gap {number(values['posterior.gap'])} nats")
        if "loss.nll" in values:
            cells.append(f"NLL {number(values['loss.nll'])} nats")
        if "bits_per_dim" in values:
            cells.append(f"{values['bits_per_dim']:.3f} bits/dim")
        if "active_units" in values:
            cells.append(f"active {values['active_units']:.0f}/{len(event.kl_per_unit)}")
        cells += [f"val {loss}" if place == 0 else loss for place, loss in enumerate(loss_cells(values))]
        if self.logged is not None:
            cells += [*pace_cells(self.logged), memory_text(self.logged.memory)]
        cells.append(f"{clock_text(self._seconds_left())} left")
        if event.patience is not None:
            cells.append(self._patience_cell(event, event.patience))
        return joined(cells)

    @staticmethod
    def _patience_cell(event: Validated, patience: int) -> str:
        if not event.selecting:
            return "patience waits"
        too_little = event.best and event.num_bad_epochs > 0
        return f"patience {event.num_bad_epochs}/{patience}{' (too small a gain)' if too_little else ''}"

    def _pace_lines(self, event: LossesLogged) -> list[str]:
        total = self.started.total_steps if self.started else event.step
        cells = [f"step {event.step:,}/{total:,}", *loss_cells(event.values), *pace_cells(event)]
        return joined([*cells, memory_text(event.memory), f"{clock_text(self._seconds_left())} left"])

    def _seconds_left(self) -> float | None:
        return self.time_left.seconds_to(self.started.total_steps) if self.started else None

    def epochs(self) -> int:
        """Epochs of the whole run, the last of them perhaps cut short."""
        if self.started is None:
            return 0
        return -(-self.started.total_steps // self.started.steps_per_epoch)


def loss_cells(values: Mapping[str, float]) -> list[str]:
    """`loss 1.234`, `mse 0.0081`, ...: the total first, then each distortion."""
    cells = [f"loss {number(values['loss.total'])}"] if "loss.total" in values else []
    for name, value in values.items():
        if name.startswith("loss.") and name not in ("loss.total", "loss.nll"):
            cells.append(f"{name.removeprefix('loss.')} {number(value)}")
    return cells


def pace_cells(event: LossesLogged) -> list[str]:
    """Learning rate, beta, speed, and the part of the time that images were waited for."""
    cells = [f"lr {event.values['lr']:.2g}"] if "lr" in event.values else []
    cells += [f"beta {event.values['beta']:.3g}"] if "beta" in event.values else []
    return [*cells, f"{number(event.images_per_second)} img/s", f"data {event.data_share:.1%}"]


def memory_text(memory: Memory) -> str:
    """The device's memory where it has its own, else the process's."""
    if memory.device_allocated is None:
        return f"mem {gibibytes(memory.process)} GiB"
    parts = [f"{gibibytes(memory.device_allocated)} used"]
    parts += [f"{gibibytes(memory.device_reserved)} reserved"] if memory.device_reserved is not None else []
    parts += [f"{gibibytes(memory.device_peak)} peak"] if memory.device_peak is not None else []
    total = "" if memory.device_total is None else f" of {gibibytes(memory.device_total)}"
    return f"GPU {', '.join(parts)}{total} GiB"
