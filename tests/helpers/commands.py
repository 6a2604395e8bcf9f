"""Runs of the whole command train_unified.py in a process that a fork server makes in milliseconds."""

from __future__ import annotations

import json
import multiprocessing.process
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.helpers.faults import Fault, NoReport, injected
from tests.helpers.runs import SETTINGS, merged, server, write_images

PATIENCE_SECONDS = 120  # for one process; far beyond what a tiny run takes


def settings_file(folder: Path, change: dict | None = None) -> Path:
    """A file for --config: a tiny run on images in the same folder."""
    where = {"data": {"source": str(write_images(folder / "images.npy")), "cache_dir": str(folder / "cache")}}
    path = folder / "settings.json"
    path.write_text(json.dumps(merged(merged(SETTINGS, where), change or {})))
    return path


def enter(words: list[str], said: Path, environment: dict[str, str], faults: tuple[Fault, ...] = ()) -> None:
    """Run the command with these words in this process; what it prints is added to a file."""
    try:  # as the scripts do
        import torch

        from unified_vae.cli.app import main

        torch.set_num_threads(1)
        os.environ.update(environment)
        out = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        with injected(NoReport(), *faults):
            code = main("train_unified.py", words)
        for name in ("SIGTERM", "SIGINT", "SIGHUP"):  # what follows is multiprocessing's own end, and no part of ours
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    raise SystemExit(code)


def said_by(run_dir: Path, rank: int = 0) -> Path:
    """The file of what a process of the run printed."""
    return run_dir.with_name(f"{run_dir.name}-rank-{rank}.said")


def started(
    config: Path,
    run_dir: Path,
    rank: int = 0,
    environment: dict[str, str] | None = None,
    faults: tuple[Fault, ...] = (),
):
    """Start the command in a process of its own."""
    words = ["--config", str(config), "--run-dir", str(run_dir)]
    process = server().Process(target=enter, args=(words, said_by(run_dir, rank), environment or {}, faults))
    process.start()
    return process


def started_together(config: Path, run_dir: Path, ranks: int = 2, faults: tuple[Fault, ...] = ()) -> list:
    """The processes of one run, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        started(config, run_dir, rank, {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, faults)
        for rank in range(ranks)
    ]


def ended(process: multiprocessing.process.BaseProcess, seconds: float = PATIENCE_SECONDS) -> int:
    """Its exit code; it has to end by itself."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        pytest.fail("the process hangs")
    assert process.exitcode is not None
    return process.exitcode


def until(condition: Callable[[], object], process: multiprocessing.process.BaseProcess) -> None:
    """Wait for what a process will have done before its end."""
    limit = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if not (process.is_alive() or condition()) or time.monotonic() > limit:
            process.kill()  # one that stands still would outlive the tests
            pytest.fail(f"not within {PATIENCE_SECONDS} s, or an end before it (exit code {process.exitcode})")
        time.sleep(0.002)


def halted(process: multiprocessing.process.BaseProcess) -> None:
    """Wait until a process with the fault Halt stands still."""
    until(lambda: _stopped(process), process)


def _stopped(process: multiprocessing.process.BaseProcess) -> bool:
    try:
        return psutil.Process(process.pid).status() == psutil.STATUS_STOPPED
    except psutil.NoSuchProcess:
        return False


def sent(process: multiprocessing.process.BaseProcess, name: str) -> bool:
    """Send it the signal of this name; False where it was over before: the fork server has taken its number back."""
    assert process.pid is not None
    try:
        os.kill(process.pid, getattr(signal, name))
    except ProcessLookupError:
        return False
    return True
