"""One run, one process: a lock beside the run's folder, freed by the system even if its holder is killed."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from unified_vae.core.errors import EnvironmentProblem
from unified_vae.core.files import with_affixes


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the run's folder while the block runs.

    The lock lies beside the folder, so that the folder can be moved aside. A file that a killed process left
    is no obstacle: it is the system's lock on it that counts.

    Raises:
        EnvironmentProblem: another process holds it; the sentence names its number and host.
    """
    run_dir = Path(os.path.realpath(run_dir))
    path = with_affixes(run_dir, ".", ".lock")
    holder = with_affixes(run_dir, ".", ".holder.json")
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        user = "another process"
        with suppress(OSError, ValueError, KeyError, TypeError):
            entry = json.loads(holder.read_text(encoding="utf-8"))
            user = f"process {entry['pid']} on {entry['host']}"
        raise EnvironmentProblem(
            f"{run_dir} is in use by {user}: two runs would spoil each other's files. "
            "Wait for it, stop it, or give another --run-dir."
        ) from None
    except OSError as problem:
        raise EnvironmentProblem(
            f"the run folder {run_dir} cannot be written ({problem.strerror}). "
            "Give another with --run-dir, or fix its permissions."
        ) from problem
    try:
        with suppress(OSError):  # it only serves the message to a second run; the disk may be full
            holder.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}), encoding="utf-8")
        yield
    finally:
        with suppress(OSError):  # the folder may be read-only by now
            holder.unlink(missing_ok=True)
        lock.release()
