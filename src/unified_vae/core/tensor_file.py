"""Named tensors as one safetensors file, complete or absent: opening it runs no code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from unified_vae.core.durable import STAGE_PREFIX, discard, sync_file, sync_folder

# What reading or writing such a file may raise; the library's checks of a header are errors of several kinds.
TENSOR_FILE_ERRORS = (
    SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, OverflowError,
)  # fmt: skip


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write or replace a file in one step.

    Args:
        tensors: on any device; no two of them may share memory.
        metadata: text for the file's header; of one entry, as the library writes several in any order.

    Raises:
        OSError, SafetensorError: the disk is full or the folder cannot be written; what was there is kept.
    """
    stage = path.with_name(f"{STAGE_PREFIX}{path.name}-{os.getpid()}")
    discard(stage)
    try:
        stage.mkdir()
        fill(stage / path.name, tensors, metadata)
        (stage / path.name).replace(path)
        sync_folder(path.parent)
    finally:
        discard(stage)


def fill(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a file into a folder that is staged itself, and wait until it is on the disk.

    The library writes beside it first, under a name of its own and for its owner alone: the file gets the rights that
    any other new file gets.
    """
    path.touch()
    rights = path.stat().st_mode
    on_cpu = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    save_file(on_cpu, path, dict(metadata or {"format": "pt"}))
    path.chmod(rights)
    sync_file(path)


def parse_tensors(data: bytes) -> dict[str, Tensor]:
    """The tensors of a file that was read, on the CPU.

    Raises:
        One of TENSOR_FILE_ERRORS: it is no such file, or damaged.
    """
    return load(data)
