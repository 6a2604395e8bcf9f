"""Signals that ask a run to stop: they set a flag, and the loop acts on it after the step.

SIGTERM, SIGINT and SIGHUP save and stop; SIGUSR1 saves and goes on. A second SIGINT stops at once.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

STOPPING = ("SIGTERM", "SIGINT", "SIGHUP")
SAVING = ("SIGUSR1",)  # absent on Windows, as is SIGHUP


class Signals:
    """What was asked for since the flags were last looked at.

    Attributes:
        stop: number of the signal that asked to stop; 0 for none.
        save: whether a save was asked for.
    """

    def __init__(self) -> None:
        self.stop = 0
        self.save = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The handler: safe at any moment, since it only sets a flag."""
        if number == getattr(signal, "SIGUSR1", None):
            self.save = True
        elif number == signal.SIGINT and self.stop == signal.SIGINT:
            # checkpoints are renamed into place when complete, so leaving here damages nothing
            with suppress(OSError):  # the same Ctrl-C has ended the `tee` that read it
                os.write(2, b"\nleft at once; the same command goes on from the newest checkpoint\n")
            os._exit(128 + signal.SIGINT)
        else:
            self.stop = number


@contextmanager
def watching() -> Iterator[Signals]:
    """Receive the signals while the block runs; the previous handlers are put back after it."""
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():  # Python allows handlers only there
        yield signals
        return
    numbers = [getattr(signal, name) for name in (*STOPPING, *SAVING) if hasattr(signal, name)]
    previous = {number: signal.signal(number, signals.receive) for number in numbers}
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
