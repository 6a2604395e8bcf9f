"""Writing that survives a crash: a file or folder is either complete under its final name or not there.

Stage beside the target, flush, fsync, rename, fsync the folder. Nothing goes through the system's folder of
temporary files, which may be full or on another disk. Importing this does not import torch.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from unified_vae.core.errors import EnvironmentProblem

STAGE_PREFIX = ".tmp-"
PROBE_BYTES = 1 << 16


def sync_file(path: Path) -> None:
    """Wait until the file's bytes are on the disk."""
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Wait until the folder's entries are on the disk. Windows has no such call and needs none."""
    if os.name != "nt":
        sync_file(path)


def write_text(path: Path, text: str) -> None:
    """Replace a small text file in one step.

    Raises:
        EnvironmentProblem: the disk is full or the folder cannot be written; what was there is kept.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a small file in one step.

    Raises:
        EnvironmentProblem: the disk is full or the folder cannot be written; what was there is kept.
    """
    stage = path.with_name(f"{STAGE_PREFIX}{path.name}-{os.getpid()}")
    try:
        stage.write_bytes(data)
        sync_file(stage)
        stage.replace(path)
        sync_folder(path.parent)
    except OSError as problem:
        discard(stage)
        raise EnvironmentProblem(
            f"{path} cannot be written ({reason(problem)}). Free space or fix the permissions, then try again."
        ) from problem


def append(path: Path, data: bytes) -> None:
    """Add to the end of a file, all of `data` or nothing.

    Raises:
        OSError: it could not be written; what a full disk took in is cut off again.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
    try:
        length = os.fstat(descriptor).st_size
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        except OSError:
            os.ftruncate(descriptor, length)
            raise
    finally:
        os.close(descriptor)


def discard(path: Path) -> None:
    """Delete a file or a folder, where it is there and can be deleted."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return  # the folder cannot be written: the next start's sweep tries again


def probe(folder: Path) -> None:
    """Write a few bytes and wait until they are on the disk: an empty file would also go onto a full one.

    Raises:
        OSError: nothing can be written there.
    """
    file = folder / f"{STAGE_PREFIX}probe-{os.getpid()}"
    try:
        file.write_bytes(bytes(PROBE_BYTES))
        sync_file(file)
    finally:
        discard(file)


def reason(problem: BaseException) -> str:
    """Why a file could not be written or read, in the system's words and without its numbers."""
    text = isinstance(problem, OSError) and problem.strerror
    return text or (str(problem) or type(problem).__name__).splitlines()[0]


def sweep_stages(folder: Path) -> None:
    """Delete the staged files and folders that a killed writer left. Nobody else may be writing there."""
    if folder.is_dir():
        for entry in folder.iterdir():
            if entry.name.startswith(STAGE_PREFIX):
                discard(entry)
