"""`<run_dir>/log.txt`: the same lines as on the screen, kept with the run and continued on resume."""

from __future__ import annotations

import datetime
import sys
from typing import TextIO

from unified_vae.cli.run_lines import RunLines
from unified_vae.core.events import RunFinished, RunStarted


class LogFile(RunLines):
    """Keeps what is said before the run has a folder, and writes it once there is one."""

    def __init__(self, command: str) -> None:
        super().__init__(None)
        now = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        self._waiting: list[str] | None = [f"--- {now}  {command}"]

    def write_line(self, line: str) -> None:
        if self._waiting is not None:
            self._waiting.append(line)
        else:
            self._write(line)

    def run_started(self, event: RunStarted) -> None:
        self._open(event)
        super().run_started(event)

    def run_finished(self, event: RunFinished) -> None:
        self._open(event)  # a run that was finished already has no start
        super().run_finished(event)

    def close(self) -> None:
        if self.stream is not None:
            self.stream.close()
            self.stream = None

    def _open(self, event: RunStarted | RunFinished) -> None:
        if self._waiting is None:
            return
        waiting, self._waiting = self._waiting, None
        path = event.run_dir / "log.txt"
        try:
            self.stream = path.open("a", encoding="utf-8", errors="backslashreplace")
        except OSError as problem:
            print(
                f"note: {path} cannot be written ({problem.strerror}); the run goes on without it",
                file=sys.stderr,
            )
        for line in waiting:
            self._write(line)

    def _write(self, line: str) -> None:
        stream: TextIO | None = self.stream
        if stream is None:
            return
        try:
            print(line, file=stream, flush=True)
        except OSError as problem:  # a full disk stops the log, not the run
            self.stream = None
            print(
                f"note: log.txt cannot be written any more ({problem.strerror}); the run goes on",
                file=sys.stderr,
            )
