"""Paths as a user writes them, and names made from them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from unified_vae.core.errors import ConfigError

LONGEST_NAME = 255
"""Bytes that file systems allow for one name."""
LONGEST_SHOWN = 400
"""Letters of a name in a message."""


def written_out(text: str, setting: str) -> Path:
    """The path that a setting names, with a leading `~` written out.

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


def shown(text: str) -> str:
    """A name for a message; of a very long one, which a file may have put there, its beginning."""
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}... ({len(text):,} letters)"


def is_file(path: Path) -> bool:
    """As `Path.is_file`, which raises OSError where a name is too long to be one."""
    try:
        return path.is_file()
    except OSError:
        return False


def above(path: Path, levels: int) -> Path:
    """The folder so many levels above, spelled as `path` is: what is told of `runs/x/model` is told of `runs/x`.

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


def sibling(path: Path, before: str = "", after: str = "") -> Path:
    """The path beside `path` whose name is its own with something before and after it.

    Where that is longer than names may be, the own name is cut and a hash of it tells it from others.
    """
    name = before + path.name + after
    if len(os.fsencode(name)) > LONGEST_NAME:
        digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
        room = LONGEST_NAME - len(os.fsencode(f"{before}{digest}{after}")) - 1
        own = os.fsencode(path.name)[:room].decode("utf-8", "ignore")
        name = f"{before}{own}-{digest}{after}"
    return path.with_name(name)
