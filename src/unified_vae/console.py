"""What a run shows: lines, tables, bars, the log file, time left. For the terminal, pipes and notebooks; no torch."""

from __future__ import annotations

import datetime
import json
import os
import sys
import textwrap
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

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

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

    from rich.console import Console
    from rich.progress import TaskID

WIDTH = 108
HEARTBEAT_SECONDS = 30.0
PACE_SPACING_SECONDS = 5.0
PACE_MARKS = 120  # at 5 seconds a mark, the pace is that of the last ten minutes
SHORTEST_PHASE_SECONDS = 2.0  # no speed is shown before


# --- plain text: no color, no control characters -----------------------------------------------------------


def wrapped(text: str, indent: str = "") -> list[str]:
    """Break a sentence into lines of at most WIDTH, all but the first after `indent`. Long paths stay whole."""
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False) or [""]


def joined(cells: Iterable[str], indent: str = "    ") -> list[str]:
    """Put cells two spaces apart, in as few lines as hold them; a cell is never broken."""
    lines: list[str] = []
    for cell in cells:
        if lines and len(lines[-1]) + 2 + len(cell) <= WIDTH:
            lines[-1] += f"  {cell}"
        else:
            lines.append(f"{indent}{cell}" if lines else cell)
    return lines


def table(rows: Sequence[Sequence[str]], indent: str = "  ") -> list[str]:
    """Align columns to their widest cell; the last one wraps below itself."""
    count = max(map(len, rows), default=0)
    widths = [max(len(row[column]) for row in rows) for column in range(count - 1)]
    lines: list[str] = []
    for row in rows:
        head = indent + "".join(f"{cell:<{width}}  " for cell, width in zip(row, widths, strict=False))
        lines += [line.rstrip() for line in wrapped(head.replace(" ", "\0") + row[-1], " " * len(head))]
    return [line.replace("\0", " ").rstrip() for line in lines]


def value_text(value: object) -> str:
    """Format a setting as it is written in JSON and after `--set`."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def number(value: float) -> str:
    """Format a measured number with four significant digits."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def gibibytes(count: int) -> str:
    """Format bytes in GiB, one decimal from 0.1 to 100."""
    size = count / 2**30
    if size < 0.1:
        return f"{size:.2g}"
    return f"{size:.1f}" if size < 100 else f"{size:.0f}"


def clock_text(seconds: float | None) -> str:
    """Format seconds as h:mm:ss, with days where there are some; `--:--` where unknown."""
    if seconds is None:
        return "--:--"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    text = f"{hour}:{minute:02}:{second:02}"
    return f"{days}d {text}" if days else text


def show(lines: Iterable[str]) -> None:
    """Print lines; also where the reader has gone, as `head` does."""
    try:
        print("\n".join(lines), flush=True)
    except BrokenPipeError:
        discard(sys.stdout)


def discard(stream: TextIO) -> None:
    """Let what is still to be written to stdout or stderr go nowhere, since its reader has gone.

    What the stream holds back would otherwise fail when Python flushes it at its end, with another exit code.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class TimeLeft:
    """Estimates seconds until a step from the pace of the last minutes.

    Validation and saving count into the pace, as they will come again. The clock is monotonic: changing the date does
    not mislead it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._marks: deque[tuple[float, int]] = deque(maxlen=PACE_MARKS)
        self._last = (0.0, 0)

    def step(self, step: int) -> None:
        """Note that step number `step` was just taken. The first one, which also warms up, only starts the clock."""
        self._last = (self._clock(), step)
        if not self._marks or self._last[0] - self._marks[-1][0] >= PACE_SPACING_SECONDS:
            self._marks.append(self._last)

    def seconds_to(self, step: int) -> float | None:
        """Return seconds until `step` has been taken, never negative; None before there is a pace."""
        pace = self.per_second()
        return None if pace is None else max(0.0, (step - self._last[1]) / pace)

    def per_second(self, at_least: float = 0.0) -> float | None:
        """Return steps per second over the last minutes; None before `at_least` that many seconds."""
        if not self._marks:
            return None
        (start, first), (now, last) = self._marks[0], self._last
        return (last - first) / (now - start) if last > first and now - start > at_least else None


# --- events of a run as lines ------------------------------------------------------------------------------


def started_lines(event: RunStarted) -> list[str]:
    """Describe what was resolved, beta and all loss weights, and on resume what changed."""
    title = f"resumed at step {event.start_step:,} of {event.total_steps:,}" if event.resumed else "started"
    lines = ["", *wrapped(f"run {title} in {event.run_dir.as_posix()}", "  "), *table(event.facts)]

    # beta comes first, and terms that are off are listed too
    rows: list[Sequence[str]] = [("term", "weight", "now", "schedule")]
    for term in sorted(event.terms, key=lambda term: term.name != "loss.kl"):
        name = "loss.kl (beta)" if term.name == "loss.kl" else term.name
        notes = [term.schedule if term.weight else "off", *([term.note] if term.note else [])]
        rows.append((name, f"{term.weight:g}", f"{term.weight * term.factor:g}", "; ".join(notes)))
    lines += ["", "objective: beta and all loss weights", *table(rows), ""]

    if event.differences:
        rows = [(each.path, value_text(each.before), value_text(each.now)) for each in event.differences]
        lines += ["settings changed since the checkpoint", *table([("setting", "before", "now"), *rows]), ""]
    elif event.resumed:
        lines += ["settings are those of the checkpoint", ""]
    return lines


def finished_lines(event: RunFinished) -> list[str]:
    """Say how the run ended, its PSNR, and what to do next."""
    outcome = event.outcome
    if event.signal:  # the name of a signal, or another reason
        outcome += f" by {event.signal}" if event.signal.startswith("SIG") else f": {event.signal}"
    lines = ["", f"run {outcome} at step {event.step:,} after {clock_text(event.seconds)}"]
    if "psnr" in event.values:
        step = "" if event.best_step is None else f" at step {event.best_step:,}"
        lines.append(f"  best validation PSNR {event.values['psnr']:.2f} dB{step}")
    lines += wrapped(f"  run folder: {event.run_dir.as_posix()}", "    ")
    if event.model_dir is not None:
        lines += wrapped(f"  model: {event.model_dir.as_posix()}", "    ")
    for advice in event.advice:
        text, start, command = f"  {advice}".partition("uv run ")
        if start and len(f"  {advice}") > WIDTH:  # a command stays on a line of its own, so that it can be copied
            lines += [*wrapped(text.rstrip(), "    "), f"    {start}{command}"]
        else:
            lines += wrapped(f"  {advice}", "    ")
    return lines


def validated_cells(event: Validated) -> list[str]:
    """Return the metrics of a validation: likeness, KL, likelihood, active units, losses."""
    texts: dict[str, Callable[[float], str]] = {
        "psnr": lambda value: f"PSNR {value:.2f} dB{' (best)' if event.best else ''}",
        "psnr.above_pca": lambda value: f"{abs(value):.1f} dB {'above' if value >= 0 else 'below'} PCA",
        "sharpness": lambda value: f"sharpness {value:.2f}",
        "rate.nats": lambda value: f"KL {number(value)} nats",
        "posterior.gap": lambda value: f"gap {number(value)} nats",
        "loss.nll": lambda value: f"NLL {number(value)} nats",
        "bits_per_dim": lambda value: f"{value:.3f} bits/dim",
        "active_units": lambda value: f"active units {value:.0f}/{len(event.kl_per_unit)}",
    }
    cells = [text(event.values[name]) for name, text in texts.items() if name in event.values]
    losses = loss_cells(event.values)
    return [*cells, *(f"val {cell}" for cell in losses[:1]), *losses[1:]]


def loss_cells(values: Mapping[str, float]) -> list[str]:
    """Return `loss 1.234`, `mse 0.0081`, ...: the total first, then each distortion."""
    cells = [f"loss {number(values['loss.total'])}"] if "loss.total" in values else []
    for name, value in values.items():
        if name.startswith("loss.") and name not in ("loss.total", "loss.nll"):
            cells.append(f"{name.removeprefix('loss.')} {number(value)}")
    return cells


def pace_cells(event: LossesLogged) -> list[str]:
    """Return learning rate, beta, speed, the share of time spent waiting for images, and memory."""
    cells = [f"lr {event.values['lr']:.2g}"] if "lr" in event.values else []
    cells += [f"beta {event.values['beta']:.3g}"] if "beta" in event.values else []
    speed = f"{number(event.images_per_second)} img/s"
    return [*cells, speed, f"data {event.data_share:.1%}", memory_text(event.memory)]


def memory_text(memory: Memory) -> str:
    """Describe the device's memory where it has its own, else the process's."""
    if memory.device_allocated is None:
        return f"mem {gibibytes(memory.process)} GiB"
    sizes = (memory.device_allocated, memory.device_reserved, memory.device_peak, memory.device_total)
    used, reserved, peak, total = (gibibytes(size or 0) for size in sizes)
    return f"GPU {used} used, {reserved} reserved, {peak} peak of {total} GiB"


# --- observers ---------------------------------------------------------------------------------------------


class RunLines(Observer):
    """Writes the events of a run to a stream as lines: one per epoch, and one per half minute.

    A stream that can no longer be written, such as a closed pipe, is given up: observers of a run do not end it.
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
        self._phase_left = TimeLeft(clock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the output; nothing more will be written."""

    def show(self, lines: Iterable[str]) -> None:
        """Write lines as they are."""
        for line in lines:
            self.write_line(line)
        self._last_line = self.clock()

    def write_line(self, line: str) -> None:
        """Write one line; subclasses write it elsewhere."""
        if self.stream is not None:
            try:
                print(line, file=self.stream, flush=True)
            except (OSError, ValueError):  # ValueError: the stream was closed
                self.stream = None

    def phase(self, text: str, done: int, total: int | None) -> None:
        is_known = text == self._phase and done != total and not self._heartbeat_due()
        pace = self.phase_pace(text, done, total)
        if not is_known:
            count = f": {done:,} of {total:,}" if total else f": {done:,}" if done else ""
            self.show(wrapped(", ".join([f"{text}{count}", *pace]), "  "))

    def phase_pace(self, text: str, done: int, total: int | None) -> list[str]:
        """Return speed and time left of a preparation, e.g. ["812/s", "0:01:07 left"]; nothing while unknown."""
        if text != self._phase:
            self._phase, self._phase_left = text, TimeLeft(self.clock)
        self._phase_left.step(done)
        pace = self._phase_left.per_second(SHORTEST_PHASE_SECONDS)
        if pace is None or not total:
            return []
        speed = f"{pace:,.0f}/s" if pace >= 10 else f"{pace:.2g}/s"
        return [speed] if done >= total else [speed, f"{clock_text(self._phase_left.seconds_to(total))} left"]

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
            total = self.started.total_steps if self.started else event.step
            cells = [f"step {event.step:,}/{total:,}", *loss_cells(event.values), *pace_cells(event)]
            self.show(joined([*cells, f"{self._run_left()} left"]))

    def validated(self, event: Validated) -> None:
        cells = [f"epoch {event.epoch}/{self.epochs()}", *validated_cells(event)]
        cells += pace_cells(self.logged) if self.logged is not None else []
        cells.append(f"{self._run_left()} left")
        if event.patience is not None:
            is_below_min_delta = event.best and event.num_bad_epochs > 0
            gain = " (gain too small)" if is_below_min_delta else ""
            patience = f"patience {event.num_bad_epochs}/{event.patience}{gain}"
            cells.append(patience if event.selecting else "early stopping inactive (warm-up)")
        self.show(joined(cells))

    def rolled_back(self, event: RolledBack) -> None:
        self.time_left = TimeLeft(self.clock)

    def run_finished(self, event: RunFinished) -> None:
        self.show(finished_lines(event))

    def epochs(self) -> int:
        """Return the epochs of the whole run, the last of them perhaps cut short."""
        return -(-self.started.total_steps // self.started.steps_per_epoch) if self.started else 0

    def _heartbeat_due(self) -> bool:
        return self.heartbeat is not None and self.clock() - self._last_line >= self.heartbeat

    def _run_left(self) -> str:
        return clock_text(self.time_left.seconds_to(self.started.total_steps) if self.started else None)


class TerminalProgress(RunLines):
    """The lines of a run, and below them live bars of epoch and run: losses, speed, memory, time left."""

    heartbeat = None  # the bars show that the run is alive

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console, Group
        from rich.live import Live
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.text import Text

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
        self._tasks: dict[str, TaskID] = {}  # bars by name: the phase's text, "epoch", "run"

    def write_line(self, line: str) -> None:
        with suppress(OSError, ValueError):  # a lost terminal must not end the run
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        with suppress(OSError, ValueError):
            self.live.stop()

    def phase(self, text: str, done: int, total: int | None) -> None:
        self.live.start()
        if text != self._phase:
            self._remove_bar(self._phase)
        self._show_bar(text, text, done, total, "  ".join(self.phase_pace(text, done, total)))

    def run_started(self, event: RunStarted) -> None:
        self._remove_bar(self._phase)
        super().run_started(event)
        self._show_bar("epoch", "epoch", 0, event.steps_per_epoch, "")
        self._show_bar("run", "run", 0, event.total_steps, "")
        self.live.start()

    def step_done(self, event: StepDone) -> None:
        super().step_done(event)
        epoch, done = divmod(event.step - 1, event.steps_per_epoch)
        end = min((epoch + 1) * event.steps_per_epoch, event.total_steps)
        left = f"{clock_text(self.time_left.seconds_to(end))} left"
        self._show_bar("epoch", f"epoch {epoch + 1}/{self.epochs()}", done + 1, event.steps_per_epoch, left)
        self._show_bar("run", "run", event.step, event.total_steps, f"{self._run_left()} left")

    def losses_logged(self, event: LossesLogged) -> None:
        super().losses_logged(event)
        self.status.plain = "\n".join(joined([*loss_cells(event.values), *pace_cells(event)], indent=""))

    def run_finished(self, event: RunFinished) -> None:
        self.live.stop()
        super().run_finished(event)

    def _show_bar(self, name: str, description: str, done: int, total: int | None, left: str) -> None:
        if name not in self._tasks:
            self._tasks[name] = self.bars.add_task("", total=total, count="", left="")
        count = f"{done:,}/{total:,}" if total else f"{done:,}" if done else ""
        task = self._tasks[name]
        self.bars.update(task, description=description, completed=done, total=total, count=count, left=left)

    def _remove_bar(self, name: str) -> None:
        if name in self._tasks:
            self.bars.remove_task(self._tasks.pop(name))


class LogFile(RunLines):
    """`<run_dir>/log.txt`: the same lines as on the screen, kept with the run and continued on resume.

    Lines from before the run has a folder are written once there is one. A line that cannot be written is an OSError,
    which `Observers` reports.
    """

    writes = "log.txt"

    def __init__(self, command: str) -> None:
        super().__init__(None)
        now = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        self._pending = [f"--- {now}  {command}"]

    def write_line(self, line: str) -> None:
        if self.stream is None:
            self._pending.append(line)
        else:
            print(line, file=self.stream, flush=True)

    def run_started(self, event: RunStarted) -> None:
        super().run_started(event)
        self._open(event.run_dir)

    def run_finished(self, event: RunFinished) -> None:
        super().run_finished(event)
        self._open(event.run_dir)  # a run that was finished already has no start

    def close(self) -> None:
        if self.stream is not None:
            with suppress(OSError):  # what a full disk did not take
                self.stream.close()
            self.stream = None

    def _open(self, run_dir: Path) -> None:
        if self.stream is None:
            self.stream = (run_dir / "log.txt").open("a", encoding="utf-8", errors="backslashreplace")
            pending, self._pending = self._pending, []
            for line in pending:
                self.write_line(line)


def open_console() -> RunLines:
    """Return an observer of stdout: bars on a terminal, plain lines in a pipe or a file. Close it, or use `with`."""
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        return TerminalProgress()
    return RunLines(sys.stdout)
