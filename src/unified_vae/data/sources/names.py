"""What `--data` may say, checked without opening anything, so that a slip of the pen is told at once."""

from __future__ import annotations

from pathlib import Path

from unified_vae.core.errors import DataError, nearest

BUILTIN = "builtin"
LIBRARIES = ("torchvision", "hf")
FORMS = "a folder, a .zip, .tar or .tar.gz, a .npy or .npz file, torchvision:NAME, hf:owner/name, or builtin"


def library(text: str) -> tuple[str, str] | None:
    """(`torchvision` or `hf`, the name in it) where the text names a data set of a library."""
    scheme, colon, name = text.partition(":")
    return (scheme, name) if colon and name and scheme in LIBRARIES else None


def check_source(text: str) -> None:
    """Refuse a file or folder that is not there.

    Raises:
        DataError: with the closest name beside the missing one, where there is one.
    """
    path = Path(text).expanduser()
    if text != BUILTIN and library(text) is None and not path.exists():
        raise DataError(f"There is no file or folder {text!r}{_suggestion(path)}; --data takes {FORMS}.")


def _suggestion(path: Path) -> str:
    try:
        beside = [child.name for child in path.parent.iterdir()]
    except OSError:
        return ""
    guess = nearest(path.name, beside)
    return f". {guess.removesuffix('?')}" if guess.startswith("Did you mean") else ""
