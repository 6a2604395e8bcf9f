"""Writing that survives a crash: a file or folder is either complete under its final name or not there.

Stage beside the target, flush, fsync, rename, fsync the folder. Importing this does not import torch.
"""

from __future__ import annotations

import os
from pathlib import Path

STAGE_PREFIX = ".tmp-"


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
    """Replace a small text file in one step."""
    stage = path.with_name(f"{STAGE_PREFIX}{path.name}-{os.getpid()}")
    stage.write_text(text, encoding="utf-8")
    sync_file(stage)
    stage.replace(path)
    sync_folder(path.parent)


def sweep_files(folder: Path) -> None:
    """Delete the staged files that a killed writer left in a folder. Nobody else may be writing there."""
    if folder.is_dir():
        for entry in folder.iterdir():
            if entry.name.startswith(STAGE_PREFIX) and entry.is_file():
                entry.unlink(missing_ok=True)
