"""What `--data` may say, checked without opening anything, so that a slip of the pen is told at once."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

from unified_vae.core.errors import DataError, close_names
from unified_vae.core.paths import shown, written_out

BUILTIN = "builtin"
LIBRARIES = ("torchvision", "hf")
FORMS = "a folder, a .zip, .tar or .tar.gz, a .npy or .npz file, torchvision:NAME, hf:owner/name, or builtin"

ZIP_SUFFIXES = (".zip",)
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
ARRAY_SUFFIXES = (".npy", ".npz")

_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}


def library(text: str) -> tuple[str, str] | None:
    """(`torchvision` or `hf`, the name in it) where the text names a data set of a library."""
    scheme, colon, name = text.partition(":")
    return (scheme, name) if colon and name and scheme in LIBRARIES else None


def source_path(text: str) -> Path:
    """The path that `--data` names; raises ConfigError where none can be of that name."""
    return written_out(text, "--data")


def same_source(one: str, other: str) -> bool:
    """Whether two texts name the same source, however a path is written."""
    if one == other or BUILTIN in (one, other) or library(one) or library(other):
        return one == other
    return source_path(one).resolve() == source_path(other).resolve()


def check_source(text: str) -> None:
    """Refuse a file or folder that is not there, may not be read, or is of no kind that can be read.

    Raises:
        DataError: with the closest name beside a missing one, where there is one.
    """
    if text == BUILTIN or library(text) is not None:
        return
    path = source_path(text)
    try:
        status = path.stat()
    except OSError as error:
        if error.errno not in _ABSENT:
            raise DataError(f"{text!r} cannot be looked at ({error.strerror}); mend its permissions.") from None
        raise DataError(
            f"There is no file or folder {shown(repr(text))}{_suggestion(path)}; --data takes {FORMS}."
        ) from None
    folder = stat.S_ISDIR(status.st_mode)
    readable = path.name.lower().endswith((*ZIP_SUFFIXES, *TAR_SUFFIXES, *ARRAY_SUFFIXES))
    if not folder and not (stat.S_ISREG(status.st_mode) and readable):
        raise DataError(f"{text!r} is of no kind that can be read; --data takes {FORMS}.")
    try:
        _try(path, folder)
    except OSError as error:
        kind = "folder" if folder else "file"
        raise DataError(f"The {kind} {text!r} may not be read ({error.strerror}); mend its permissions.") from None


def check_not_empty(text: str) -> None:
    """Raise DataError for a folder with nothing in it; whether what there is can be used is seen when it is read."""
    path = None if text == BUILTIN or library(text) is not None else source_path(text)
    if path is None or not path.is_dir():
        return
    with os.scandir(path) as entries:
        if next(entries, None) is None:
            raise DataError(
                f"The folder {text!r} is empty: there is no usable image. Check that --data names the right place, or "
                "try --data builtin."
            )


def _try(path: Path, folder: bool) -> None:
    """Open and close it: what permissions say is not always what is allowed."""
    if folder:
        os.scandir(path).close()
        with contextlib.suppress(FileNotFoundError):
            (path / "any name").lstat()  # whether names in it may be asked for
    else:
        path.open("rb").close()


def _suggestion(path: Path) -> str:
    try:
        guesses = close_names(path.name, sorted(child.name for child in path.parent.iterdir()))
    except OSError:
        return ""
    return ". Did you mean " + " or ".join(map(repr, guesses)) if guesses else ""
