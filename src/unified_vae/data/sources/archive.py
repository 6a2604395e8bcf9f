"""What zip and tar have in common: which members are refused, decompression bombs, damage to the whole.

Archives are read in place: nothing is extracted to the disk, so no name in them can lead anywhere.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TypeVar

from unified_vae.core.errors import DataError, UserError
from unified_vae.data.records import BadImage

MAX_RATIO = 200
"""Deflate reaches about 1000:1 on zeros; pictures, even raw ones of flat colour, stay far below this."""

SMALL_BYTES = 16 * 2**20
"""Below this size a high ratio harms nobody."""

_NESTED = (".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".rar", ".npz")

Member = TypeVar("Member")


def unsafe_name(name: str) -> str | None:
    """Why a member's name is refused, or None. Windows forms count everywhere."""
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    if posix.is_absolute() or windows.is_absolute() or windows.drive:
        return "an absolute path inside an archive"
    if ".." in posix.parts or ".." in windows.parts:
        return "a path that leads out of the archive"
    if "\0" in name:
        return "a name with a zero byte"
    return None


def slashes(name: str) -> str:
    """The member's name with "/" between its parts: some Windows programs write backslashes."""
    return name.replace("\\", "/")


def is_archive(name: str) -> bool:
    """Whether a member is itself an archive, which is not opened."""
    return name.lower().endswith(_NESTED)


def last_of_each_name(members: Sequence[tuple[Hashable, Member]]) -> tuple[list[Member], list[str]]:
    """The members without those that a later one of the same name replaces, as unpacking would; and a note of it."""
    last = {name: index for index, (name, _) in enumerate(members)}
    kept = [member for index, (name, member) in enumerate(members) if last[name] == index]
    replaced = len(members) - len(kept)
    note = f"{replaced:,} members of the archive were passed over: a later one has the same name."
    return kept, [note] if replaced else []


def nested_note(count: int) -> list[str]:
    """What is said of archives inside the archive."""
    return [f"{count:,} archives inside the archive were not opened: unpack them first."] if count else []


def refuse_bomb(path: Path, expanded: int, packed: int) -> None:
    """Raise DataError where the whole of an archive expands out of all proportion."""
    if expanded > SMALL_BYTES and expanded > MAX_RATIO * packed:
        raise DataError(
            f"{path} expands more than {MAX_RATIO}-fold: it looks like a decompression bomb, so it is not read; "
            "if it is yours, unpack it and give the folder."
        )


@contextmanager
def whole_archive(path: Path) -> Iterator[None]:
    """Damage to the archive as a whole is the user's to mend; its readers raise nearly anything on it."""
    try:
        yield
    except (UserError, BadImage):
        raise
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}; fetch or pack it again.") from None
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"{path} is damaged or not an archive ({reason}); fetch or pack it again.") from None
