"""The source that `--data` names; names are checked without reading anything, so typos are reported immediately."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from unified_vae.core.errors import DataError, close_names, truncate
from unified_vae.core.files import expand_user

if TYPE_CHECKING:
    from unified_vae.data.sources.base import Progress, Source

BUILTIN = "builtin"
FORMS = "a folder, a .zip, .tar or .tar.gz, a .npy or .npz file, torchvision:NAME, hf:owner/name, or builtin"

# The table of sources beside folders and the built-in set: how `--data` ends or begins -> the class, imported on use
FILES = {
    ".zip": "archive:ZipSource",
    ".tar": "archive:TarSource",
    ".tar.gz": "archive:TarSource",
    ".tgz": "archive:TarSource",
    ".npy": "array:ArraySource",
    ".npz": "array:ArraySource",
}
LIBRARIES = {"torchvision": "libraries:TorchvisionSource", "hf": "libraries:HubSource"}

_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}


def library_dataset(text: str) -> tuple[str, str] | None:
    """Return (`torchvision` or `hf`, the name in it) where the text names a dataset of a library."""
    scheme, colon, name = text.partition(":")
    return (scheme, name) if colon and name and scheme in LIBRARIES else None


def source_path(text: str) -> Path:
    """Return the path that `--data` names; raises ConfigError where none can have that name."""
    return expand_user(text, "--data")


def absolute_source(text: str) -> str:
    """Return the source with an absolute path, so that it is found from any folder."""
    is_path = text != BUILTIN and library_dataset(text) is None
    return str(source_path(text).absolute()) if is_path else text


def same_source(a: str, b: str) -> bool:
    """Return whether two texts name the same source, however a path is written."""
    if a == b or BUILTIN in (a, b) or library_dataset(a) or library_dataset(b):
        return a == b
    return source_path(a).resolve() == source_path(b).resolve()


def check_source(text: str) -> None:
    """Reject a file or folder that does not exist, cannot be read, or is of no kind that can be read.

    Raises:
        DataError: with the closest name beside a missing one, where there is one.
    """
    if text == BUILTIN or library_dataset(text) is not None:
        return
    path = source_path(text)
    try:
        status = path.stat()
    except OSError as error:
        if error.errno not in _ABSENT:
            raise DataError(f"{text!r} cannot be accessed ({error.strerror}); fix its permissions.") from None
        try:
            guesses = close_names(path.name, sorted(child.name for child in path.parent.iterdir()))
        except OSError:
            guesses = []
        suggestion = ". Did you mean " + " or ".join(map(repr, guesses)) if guesses else ""
        raise DataError(
            f"There is no file or folder {truncate(repr(text))}{suggestion}; --data takes {FORMS}."
        ) from None
    folder = stat.S_ISDIR(status.st_mode)
    readable = path.name.lower().endswith(tuple(FILES))
    if not folder and not (stat.S_ISREG(status.st_mode) and readable):
        raise DataError(f"{text!r} is of no kind that can be read; --data takes {FORMS}.")

    # Open and close it: what permissions say is not always what is allowed
    try:
        if folder:
            os.scandir(path).close()
            with contextlib.suppress(FileNotFoundError):
                (path / "any name").lstat()  # whether what is in it may be accessed
        else:
            path.open("rb").close()
    except OSError as error:
        kind = "folder" if folder else "file"
        raise DataError(f"The {kind} {text!r} cannot be read ({error.strerror}); fix its permissions.") from None


def check_not_empty(text: str) -> None:
    """Raise DataError for an empty folder; whether what it holds can be used shows when it is read."""
    if text == BUILTIN or library_dataset(text) is not None or not source_path(text).is_dir():
        return
    with os.scandir(source_path(text)) as entries:
        if next(entries, None) is None:
            raise DataError(
                f"The folder {text!r} is empty: there is no usable image. Check that --data names the right place, or "
                "try --data builtin."
            )


def find_source(text: str, cache: Path, progress: Progress) -> Source:
    """Return the source that `--data` names (all but "builtin", which is drawn and not read).

    Raises:
        DataError: the file does not exist, cannot be read, or is of no known kind.
    """
    check_source(text)
    arguments: tuple[Any, ...]
    if library := library_dataset(text):
        scheme, name = library
        kind, arguments = LIBRARIES[scheme], (name, cache, progress)
    else:
        path = source_path(text)
        kinds = [kind for suffix, kind in FILES.items() if path.name.lower().endswith(suffix)]
        kind, arguments = "folder:FolderSource" if path.is_dir() else kinds[0], (path,)
    source: Source = resolve_name(f"{__package__}.{kind}")(*arguments)
    return source
