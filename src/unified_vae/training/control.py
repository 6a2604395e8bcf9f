"""Stopping a run early or asking for a save, by a call or by a signal: both set flags that the trainer reads.

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


class TrainControl:
    """The one way to stop a run early or to ask for a save: the trainer acts on it after the step, on all ranks.

    Attributes:
        stop_reason: why the run is to stop, e.g. the name of a signal; empty where it is not.
        save_requested: whether a checkpoint was asked for.
    """

    def __init__(self) -> None:
        self.stop_reason = ""
        self.save_requested = False

    def stop(self, reason: str) -> None:
        """Save a checkpoint and stop after the current step."""
        self.stop_reason = reason

    def request_save(self) -> None:
        """Save a checkpoint after the current step."""
        self.save_requested = True


@contextmanager
def handle_signals(control: TrainControl) -> Iterator[None]:
    """Turn signals into requests to `control` while the block runs; the previous handlers are put back after it."""
    if threading.current_thread() is not threading.main_thread():  # Python allows handlers only there
        yield
        return

    def handler(number: int, frame: FrameType | None) -> None:
        """Safe at any moment, since it only sets a flag."""
        name = signal.Signals(number).name
        if name in SAVING:
            control.request_save()
        elif name == "SIGINT" and control.stop_reason == "SIGINT":
            # checkpoints are renamed into place when complete, so leaving here damages nothing
            with suppress(OSError):  # the same Ctrl-C has ended the `tee` that read it
                os.write(2, b"\naborted; rerun the same command to resume from the newest checkpoint\n")
            os._exit(128 + signal.SIGINT)
        else:
            control.stop(name)

    numbers = [getattr(signal, name) for name in (*STOPPING, *SAVING) if hasattr(signal, name)]
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
