"""Which source a text names."""

from __future__ import annotations

from pathlib import Path

from unified_vae.core.errors import DataError, nearest
from unified_vae.data.records import Progress, Source
from unified_vae.data.sources.archive import TAR_SUFFIXES, TarSource, ZipSource
from unified_vae.data.sources.array import ArraySource
from unified_vae.data.sources.folder import FolderSource
from unified_vae.data.sources.hub import HubSource
from unified_vae.data.sources.torchvision_source import TorchvisionSource

BUILTIN = "builtin"
_FORMS = "a folder, a .zip, .tar or .tar.gz, a .npy or .npz file, torchvision:NAME, hf:owner/name, or builtin"


def find_source(text: str, cache: Path, progress: Progress) -> Source:
    """The source that `--data` names (all but "builtin", which is drawn and not read).

    Raises:
        DataError: there is no such file, or it is of no known kind.
    """
    scheme, colon, name = text.partition(":")
    if colon and name and scheme == "torchvision":
        return TorchvisionSource(name, cache / "torchvision", progress)
    if colon and name and scheme == "hf":
        return HubSource(name, cache / "huggingface", progress)
    path = Path(text).expanduser()
    if not path.exists():
        raise DataError(f"There is no file or folder {text!r}{_suggestion(path)}; --data takes {_FORMS}.")
    if path.is_dir():
        return FolderSource(path)
    suffix = path.name.lower()
    if suffix.endswith(".zip"):
        return ZipSource(path)
    if suffix.endswith(TAR_SUFFIXES):
        return TarSource(path)
    if suffix.endswith((".npy", ".npz")):
        return ArraySource(path)
    raise DataError(f"{text!r} is of no kind that can be read; --data takes {_FORMS}.")


def _suggestion(path: Path) -> str:
    """The closest name beside the missing one, where there is one."""
    try:
        beside = [child.name for child in path.parent.iterdir()]
    except OSError:
        return ""
    guess = nearest(path.name, beside)
    return f". {guess.removesuffix('?')}" if guess.startswith("Did you mean") else ""
