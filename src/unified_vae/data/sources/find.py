"""Which source a text names."""

from __future__ import annotations

from pathlib import Path

from unified_vae.data.records import Progress, Source
from unified_vae.data.sources.array import ArraySource
from unified_vae.data.sources.folder import FolderSource
from unified_vae.data.sources.hub import HubSource
from unified_vae.data.sources.names import TAR_SUFFIXES, ZIP_SUFFIXES, check_source, library, source_path
from unified_vae.data.sources.tar_source import TarSource
from unified_vae.data.sources.torchvision_source import TorchvisionSource
from unified_vae.data.sources.zip_source import ZipSource


def find_source(text: str, cache: Path, progress: Progress) -> Source:
    """The source that `--data` names (all but "builtin", which is drawn and not read).

    Raises:
        DataError: there is no such file, it may not be read, or it is of no known kind.
    """
    check_source(text)
    match library(text):
        case ("torchvision", name):
            return TorchvisionSource(name, cache / "torchvision", progress)
        case ("hf", name):
            return HubSource(name, cache / "huggingface", progress)
    path = source_path(text)
    if path.is_dir():
        return FolderSource(path)
    if path.name.lower().endswith(ZIP_SUFFIXES):
        return ZipSource(path)
    return TarSource(path) if path.name.lower().endswith(TAR_SUFFIXES) else ArraySource(path)
