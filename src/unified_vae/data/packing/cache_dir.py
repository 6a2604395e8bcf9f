"""Where packed images are kept, whether they fit there, and clearing what killed runs left behind."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs
import psutil

from unified_vae.core.errors import EnvironmentProblem
from unified_vae.core.paths import written_out

ENVIRONMENT_VARIABLE = "UNIFIED_VAE_CACHE"
_STAGE = ".stage"
_ABANDONED_SECONDS = 24 * 3600  # for stages of other machines and containers, whose processes cannot be asked for
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG} if hasattr(errno, "EDQUOT") else {errno.ENOSPC, errno.EFBIG}
_ELSEWHERE = f"set data.cache_dir or ${ENVIRONMENT_VARIABLE} to a folder on another disk"


def cache_root(configured: str | None) -> Path:
    """data.cache_dir, else $UNIFIED_VAE_CACHE, else the user's cache folder of this system."""
    chosen = configured or os.environ.get(ENVIRONMENT_VARIABLE)
    if chosen:
        return written_out(chosen, "data.cache_dir" if configured else f"${ENVIRONMENT_VARIABLE}").absolute()
    return Path(platformdirs.user_cache_dir("unified-vae", appauthor=False))


@contextmanager
def disk_problems(root: Path) -> Iterator[None]:
    """Turn a full or read-only disk into a sentence with a way out."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise EnvironmentProblem(f"The disk of {root} is full; free some space there, or {_ELSEWHERE}.") from None
        raise EnvironmentProblem(
            f"The cache folder {root} cannot be written ({error.strerror or error}); give permission, or {_ELSEWHERE}."
        ) from None


def check_space(root: Path, needed: int) -> None:
    """Refuse before any decoding what would not fit; 5 % and 16 MB stay free."""
    free = shutil.disk_usage(root).free
    if needed * 1.05 + 2**24 > free:
        raise EnvironmentProblem(
            f"The packed images need {needed / 1e9:.2f} GB in {root}, where {free / 1e9:.2f} GB are free; "
            f"free some space, {_ELSEWHERE}, or lower data.max_images."
        )


def new_stage(root: Path) -> Path:
    """A fresh folder beside the finished ones, so that the final rename stays on one file system."""
    stage = root / f"{_STAGE}-{_host()}-{os.getpid()}-{uuid.uuid4().hex[:12]}"
    with disk_problems(root):
        stage.mkdir(parents=True)
    return stage


def sweep(root: Path) -> None:
    """Delete stages whose process is gone. Those of running ones stay, also of other machines and containers."""
    for stage in root.glob(f"{_STAGE}-*"):
        if _abandoned(stage):
            shutil.rmtree(stage, ignore_errors=True)


def _abandoned(stage: Path) -> bool:
    parts = stage.name.split("-")
    try:
        age = time.time() - stage.stat().st_mtime
    except OSError:
        return False  # its owner has just renamed it
    if len(parts) == 4 and parts[1] == _host() and parts[2].isdigit() and not psutil.pid_exists(int(parts[2])):
        return True
    return age > _ABANDONED_SECONDS


def _host() -> str:
    """Where a process number means the same process: containers may share a host's name, and number for themselves."""
    try:
        numbered = str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # not Linux
        numbered = ""
    return "".join(letter for letter in socket.gethostname() + numbered if letter.isalnum())
