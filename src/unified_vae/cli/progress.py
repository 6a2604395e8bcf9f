"""Bars on a terminal for the epoch and the run: losses, speed, memory, time left; lines scroll above them."""

from __future__ import annotations

import contextlib

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from unified_vae.cli.run_lines import RunLines, loss_cells, memory_text, pace_cells
from unified_vae.cli.text import joined
from unified_vae.cli.time_left import clock_text
from unified_vae.core.events import LossesLogged, RunFinished, RunStarted, StepDone


class TerminalProgress(RunLines):
    """The lines of a run, and below them live bars."""

    heartbeat = None  # the bars show that the run is alive

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(None)
        self.console = console or Console(highlight=False)
        self.bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[count]}", markup=False),
            TextColumn("{task.fields[left]}", markup=False),
            console=self.console,
        )
        self.status = Text("")
        self.live = Live(Group(self.bars, self.status), console=self.console, refresh_per_second=4, transient=True)
        self._preparing: tuple[str, TaskID] | None = None
        self._epoch: TaskID | None = None
        self._run: TaskID | None = None

    def write_line(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # a lost terminal must not end the run
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.live.stop()

    def phase(self, text: str, done: int, total: int | None) -> None:
        self.live.start()
        count = f"{done:,}/{total:,}" if total else f"{done:,}" if done else ""
        if self._preparing is None or self._preparing[0] != text:
            self._end_preparation()
            self._preparing = (text, self.bars.add_task(text, total=total, count=count, left=""))
        pace = "  ".join(self.phase_pace.words(text, done, total))
        self.bars.update(self._preparing[1], completed=done, total=total, count=count, left=pace)

    def run_started(self, event: RunStarted) -> None:
        self._end_preparation()
        super().run_started(event)
        self._epoch = self.bars.add_task("epoch", total=event.steps_per_epoch, count="", left="")
        self._run = self.bars.add_task("run", total=event.total_steps, count="", left="")
        self.live.start()

    def step_done(self, event: StepDone) -> None:
        super().step_done(event)
        if self._epoch is None or self._run is None:
            return
        epoch, inside = divmod(event.step - 1, event.steps_per_epoch)
        end = min((epoch + 1) * event.steps_per_epoch, event.total_steps)
        self.bars.update(
            self._epoch,
            description=f"epoch {epoch + 1}/{self.epochs()}",
            completed=inside + 1,
            count=f"{inside + 1:,}/{event.steps_per_epoch:,}",
            left=f"{clock_text(self.time_left.seconds_to(end))} left",
        )
        self.bars.update(
            self._run,
            completed=event.step,
            count=f"{event.step:,}/{event.total_steps:,}",
            left=f"{clock_text(self.time_left.seconds_to(event.total_steps))} left",
        )

    def losses_logged(self, event: LossesLogged) -> None:
        super().losses_logged(event)
        cells = [*loss_cells(event.values), *pace_cells(event), memory_text(event.memory)]
        self.status.plain = "\n".join(joined(cells, indent=""))

    def run_finished(self, event: RunFinished) -> None:
        self.live.stop()
        super().run_finished(event)

    def _end_preparation(self) -> None:
        if self._preparing is not None:
            self.bars.remove_task(self._preparing[1])
            self._preparing = None
