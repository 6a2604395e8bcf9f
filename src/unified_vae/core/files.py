"""Files and paths. Writing survives a crash: a file or folder is either complete under its final name or not there.

Stage beside the target, flush, fsync, rename, fsync the folder. Nothing goes through the system's folder of
temporary files, which may be full or on another disk. Importing this does not import torch.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from unified_vae.core.errors import ConfigError, EnvironmentProblem, reason

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
    with path.open("ab", buffering=0) as file:
        length = file.tell()
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            file.truncate(length)
            raise


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


def sweep_stages(folder: Path) -> None:
    """Delete the staged files and folders that a killed writer left. Nobody else may be writing there."""
    if folder.is_dir():
        for entry in folder.iterdir():
            if entry.name.startswith(STAGE_PREFIX):
                discard(entry)


LONGEST_NAME = 255
"""Bytes that file systems allow for one name."""


def expand_user(text: str, setting: str) -> Path:
    """Return the path that a setting names, with a leading `~` written out.

    Args:
        text: as given, e.g. `~/photos`.
        setting: what holds it, for the message.

    Raises:
        ConfigError: it begins with the home of an unknown user, or holds a zero byte, which no path can.
    """
    if "\0" in text:
        raise ConfigError(f"{setting}: {text!r} holds a zero byte, which no path can; write the path anew")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        user = Path(text).parts[0]
        raise ConfigError(
            f"{setting}: {text!r} begins with {user}, and the home of that user is not known; write the path out"
        ) from None


def is_file(path: Path) -> bool:
    """Do as `Path.is_file`, which raises OSError where a name is too long to be one."""
    try:
        return path.is_file()
    except OSError:
        return False


def ancestor(path: Path, levels: int) -> Path:
    """Return the folder so many levels above, spelled as `path` is: a message on `runs/x/model` names `runs/x`.

    Where the spelling has no such part (`.`, a link), it is below the current folder if it lies there, else absolute.
    The current folder itself is absolute too: `.` says nothing where it is read later.
    """
    real, written = path.resolve().parents[levels - 1], Path(os.path.normpath(path)).parents
    if real == Path.cwd():
        return real
    if levels <= len(written) and written[levels - 1].resolve() == real:
        return written[levels - 1]
    here = Path.cwd()
    return real.relative_to(here) if real.is_relative_to(here) else real


def with_affixes(path: Path, before: str = "", after: str = "") -> Path:
    """Return the path beside `path` whose name is its own with something before and after it.

    Where that is longer than names may be, the own name is cut and a hash of it tells it from others.
    """
    name = before + path.name + after
    if len(os.fsencode(name)) > LONGEST_NAME:
        digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
        room = LONGEST_NAME - len(os.fsencode(f"{before}{digest}{after}")) - 1
        own = os.fsencode(path.name)[:room].decode("utf-8", "ignore")
        name = f"{before}{own}-{digest}{after}"
    return path.with_name(name)
