"""Checkpoints as verified folders: `step-000001234/` with safetensors, JSON, and a manifest written last.

No pickle, and no pointer to "the last": the newest folder whose manifest verifies is the one to use
(checkpoint_ring.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from unified_vae.core.durable import STAGE_PREFIX, discard, reason, sync_file, sync_folder
from unified_vae.core.errors import CheckpointError
from unified_vae.core.tensor_file import TENSOR_FILE_ERRORS, fill, parse_tensors
from unified_vae.training.manifest import STATE, read_manifest, write_manifest

TENSORS = ".safetensors"

Groups = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to go on as if it had never stopped.

    Attributes:
        step: optimizer steps taken.
        groups: file stem -> tensors, e.g. `model`, `ema`, `optimizer`, `objective`.
        state: plain JSON values.
    """

    step: int
    groups: Groups
    state: Mapping[str, Any]

    def group(self, name: str) -> Mapping[str, Tensor]:
        """The tensors of a group.

        Raises:
            CheckpointError: there are none.
        """
        if name not in self.groups:
            raise CheckpointError(f"the checkpoint of step {self.step:,} has no {name}{TENSORS}: it is of another kind")
        return self.groups[name]

    def part(self, name: str) -> Any:
        """An entry of the state.

        Raises:
            CheckpointError: there is none.
        """
        if name not in self.state:
            raise CheckpointError(
                f"the checkpoint of step {self.step:,} has no entry {name} in its {STATE}: it is of another kind"
            )
        return self.state[name]


def folder_name(step: int) -> str:
    """`step-000001234`."""
    return f"step-{step:09d}"


def save(root: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint; a crash at any moment leaves either all of it or none.

    Args:
        root: has to exist. It is not made here: where it vanished in the middle of a run, a disk may have gone with
            it, and a new folder would be on another one.

    Raises:
        CheckpointError: the disk is full, not writable or gone; nothing is left under the final name.
    """
    final = root / folder_name(checkpoint.step)
    stage = root / f"{STAGE_PREFIX}{final.name}-{os.getpid()}"
    discard(stage)
    try:
        _fill(stage, checkpoint)
        _publish(stage, final)
        sync_folder(root)
    except (OSError, SafetensorError) as problem:
        discard(stage)
        raise CheckpointError(
            f"the checkpoint of step {checkpoint.step:,} could not be saved in {root} ({reason(problem)})"
        ) from problem
    return final


def _fill(stage: Path, checkpoint: Checkpoint) -> None:
    stage.mkdir()
    for name, tensors in checkpoint.groups.items():
        fill(stage / f"{name}{TENSORS}", tensors)
    (stage / STATE).write_text(json.dumps(checkpoint.state, indent=1), encoding="utf-8")
    sync_file(stage / STATE)
    write_manifest(stage, checkpoint.step)
    sync_folder(stage)


def _publish(stage: Path, final: Path) -> None:
    """Give it its name, also where a checkpoint of the same step is there from before a resume."""
    if not final.exists():
        stage.rename(final)
        return
    old = final.with_name(f"{STAGE_PREFIX}old-{final.name}-{os.getpid()}")
    final.rename(old)
    try:
        stage.rename(final)  # a crash before this leaves the old one, which the next start's sweep puts back
    except OSError:
        old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def load(root: Path, step: int) -> Checkpoint:
    """Read one checkpoint: each file once, so that what is used is what was verified.

    Raises:
        CheckpointError: it is damaged; the sentence names the file and the reason.
    """
    folder = root / folder_name(step)
    groups, state = {}, None
    for name, expected in read_manifest(folder, step).items():
        data = _verified(folder / name, expected)
        if name == STATE:
            state = _parse_state(folder / name, data)
        elif name.endswith(TENSORS):
            groups[name.removesuffix(TENSORS)] = _parse_tensors(folder / name, data)
    assert state is not None, "the manifest names it"
    return Checkpoint(step, groups, state)


def _verified(path: Path, expected: Mapping[str, Any]) -> bytes:
    """A file's content, if it is what was saved."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path} is not a file")
        if status.st_size != expected["bytes"]:
            raise CheckpointError(f"{path} has {status.st_size:,} bytes instead of {expected['bytes']:,}")
        data = path.read_bytes()
    except FileNotFoundError as problem:
        raise CheckpointError(f"{path} is missing") from problem
    except OSError as problem:
        raise CheckpointError(f"{path} cannot be read: {reason(problem)}") from problem
    if hashlib.sha256(data).hexdigest() != expected["sha256"]:
        raise CheckpointError(f"{path} does not match its sha256: it was damaged or changed after it was saved")
    return data


def _parse_state(path: Path, data: bytes) -> dict[str, Any]:
    try:
        state = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as problem:
        raise CheckpointError(f"{path} is no JSON: {reason(problem)}") from problem
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} does not hold the state of a run")
    return state


def _parse_tensors(path: Path, data: bytes) -> dict[str, Tensor]:
    try:
        return parse_tensors(data)
    except TENSOR_FILE_ERRORS as problem:
        raise CheckpointError(f"{path} is not a file of tensors: {reason(problem)}") from problem
