"""Which source a text names."""

from __future__ import annotations

from pathlib import Path

from unified_vae.core.errors import DataError
from unified_vae.data.records import Progress, Source
from unified_vae.data.sources.archive import TAR_SUFFIXES, TarSource, ZipSource
from unified_vae.data.sources.array import ArraySource
from unified_vae.data.sources.folder import FolderSource
from unified_vae.data.sources.hub import HubSource
from unified_vae.data.sources.names import FORMS, check_source, library
from unified_vae.data.sources.torchvision_source import TorchvisionSource


def find_source(text: str, cache: Path, progress: Progress) -> Source:
    """The source that `--data` names (all but "builtin", which is drawn and not read).

    Raises:
        DataError: there is no such file, or it is of no known kind.
    """
    check_source(text)
    match library(text):
        case ("torchvision", name):
            return TorchvisionSource(name, cache / "torchvision", progress)
        case ("hf", name):
            return HubSource(name, cache / "huggingface", progress)
    path = Path(text).expanduser()
    if path.is_dir():
        return FolderSource(path)
    suffix = path.name.lower()
    if suffix.endswith(".zip"):
        return ZipSource(path)
    if suffix.endswith(TAR_SUFFIXES):
        return TarSource(path)
    if suffix.endswith((".npy", ".npz")):
        return ArraySource(path)
    raise DataError(f"{text!r} is of no kind that can be read; --data takes {FORMS}.")
