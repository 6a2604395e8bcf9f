"""Checkpoints as verified folders: `step-000001234/` with safetensors, JSON, and a manifest written last.

No pickle, and no pointer to "the last": the newest folder whose manifest verifies is the one to use.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unified_vae.core.durable import STAGE_PREFIX, sync_file, sync_folder
from unified_vae.core.errors import CheckpointError

MANIFEST = "MANIFEST.json"
STATE = "state.json"
FORMAT = 1
DAMAGED_PREFIX = "damaged-"
_NAME = re.compile(r"step-(\d{9})")
_DAMAGED = re.compile(r"damaged-step-(\d{9})")
_REPLACED = re.compile(re.escape(STAGE_PREFIX) + r"old-(step-\d{9})-\d+")

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


def folder_name(step: int) -> str:
    """`step-000001234`."""
    return f"step-{step:09d}"


def saved_steps(root: Path) -> list[int]:
    """Steps of the checkpoints in `root`, newest first; whether they verify is not looked at."""
    return _steps(root, _NAME)


def _steps(root: Path, name: re.Pattern[str]) -> list[int]:
    if not root.is_dir():
        return []
    matches = (name.fullmatch(entry.name) for entry in root.iterdir())
    return sorted((int(match[1]) for match in matches if match), reverse=True)


def save(root: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint; a crash at any moment leaves either all of it or none.

    Raises:
        CheckpointError: the disk is full or not writable; nothing is left under the final name.
    """
    root.mkdir(parents=True, exist_ok=True)
    final = root / folder_name(checkpoint.step)
    stage = root / f"{STAGE_PREFIX}{final.name}-{os.getpid()}"
    shutil.rmtree(stage, ignore_errors=True)
    try:
        _fill(stage, checkpoint)
        if final.exists():  # saved again at the same step after a resume
            old = root / f"{STAGE_PREFIX}old-{final.name}-{os.getpid()}"
            final.rename(old)
            stage.rename(final)  # a crash before this leaves the old one, which `sweep` puts back
            shutil.rmtree(old)
        else:
            stage.rename(final)
    except (OSError, SafetensorError) as problem:
        shutil.rmtree(stage, ignore_errors=True)
        raise CheckpointError(f"the checkpoint of step {checkpoint.step:,} could not be saved ({problem})") from problem
    sync_folder(root)
    return final


def _fill(stage: Path, checkpoint: Checkpoint) -> None:
    stage.mkdir()
    for name, tensors in checkpoint.groups.items():
        save_file(
            {key: value.detach().cpu().contiguous() for key, value in tensors.items()}, stage / f"{name}.safetensors"
        )
    (stage / STATE).write_text(json.dumps(checkpoint.state, indent=1), encoding="utf-8")
    files = {}
    for path in sorted(stage.iterdir()):
        sync_file(path)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    manifest = stage / MANIFEST
    content = {"format": FORMAT, "step": checkpoint.step, "files": files}
    manifest.write_text(json.dumps({**content, "seal": _seal(content)}, indent=1), encoding="utf-8")
    sync_file(manifest)
    sync_folder(stage)


def _seal(content: Mapping[str, Any]) -> str:
    """Checksum of the manifest itself, so that damage to it is not taken for damage to what it names."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load(root: Path, step: int) -> Checkpoint:
    """Read one checkpoint, after every byte of it was verified.

    Raises:
        CheckpointError: it is damaged; the sentence names the file and the reason.
    """
    folder = root / folder_name(step)
    verify(folder)
    groups = {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    return Checkpoint(step, groups, state)


def verify(folder: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        CheckpointError: a file is missing, has another size or another sha256, or the manifest is unreadable.
    """
    manifest = _read_manifest(folder / MANIFEST)
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing")
        if not os.access(path, os.R_OK):
            raise CheckpointError(f"{path} cannot be read: permission denied")
        if path.stat().st_size != expected["bytes"]:
            raise CheckpointError(f"{path} has {path.stat().st_size:,} bytes instead of {expected['bytes']:,}")
        if _sha256(path) != expected["sha256"]:
            raise CheckpointError(f"{path} does not match its sha256: it was damaged or changed after it was saved")


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        sealed = manifest.pop("seal") == _seal(manifest)
        found, named = manifest["format"], all(Path(name).name == name for name in manifest["files"])
        complete = all({"bytes", "sha256"} <= set(entry) for entry in manifest["files"].values())
    except FileNotFoundError as problem:
        raise CheckpointError(f"{path} is missing") from problem
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise CheckpointError(f"{path} cannot be read: {problem}") from problem
    if not sealed:
        raise CheckpointError(f"{path} does not match its own checksum: it was damaged or changed after it was saved")
    if found != FORMAT:
        raise CheckpointError(f"{path} is of format {found}; this version reads format {FORMAT}")
    if not (named and complete and STATE in manifest["files"]):
        raise CheckpointError(f"{path} does not describe a checkpoint")
    return dict(manifest)


def newest_good(root: Path, notice: Callable[[str], None], set_aside: bool = True) -> Checkpoint | None:
    """The newest checkpoint that verifies; None where there is none at all.

    Args:
        root: folder of the checkpoints.
        notice: told of every damaged one that was passed over.
        set_aside: give those another name, so that they are neither counted nor pruned as newest ones.

    Raises:
        CheckpointError: there are checkpoints, and all of them are damaged.
    """
    steps = saved_steps(root)
    damaged = []
    for step in steps:
        try:
            found = load(root, step)
        except CheckpointError as problem:
            notice(f"checkpoint of step {step} is not used: {problem}")
            damaged.append(step)
            continue
        for passed_over in damaged if set_aside else ():
            _set_aside(root, passed_over)
        return found
    if steps:
        raise CheckpointError(
            f"all {len(steps)} checkpoints in {root} are damaged. Restore one from a backup, "
            "or start afresh with --no-resume (the old run is moved aside, not deleted)."
        )
    return None


def _set_aside(root: Path, step: int) -> None:
    aside = root / f"{DAMAGED_PREFIX}{folder_name(step)}"
    shutil.rmtree(aside, ignore_errors=True)
    (root / folder_name(step)).rename(aside)


def prune(root: Path, keep_last: int, keep: Callable[[int], bool]) -> None:
    """Delete old checkpoints, except the newest `keep_last` and those that `keep` names.

    A folder is renamed before it is emptied, so that a crash leaves no half checkpoint under a valid name.
    """
    for step in saved_steps(root)[keep_last:]:
        if not keep(step):
            doomed = root / f"{STAGE_PREFIX}{folder_name(step)}-pruned"
            shutil.rmtree(doomed, ignore_errors=True)
            (root / folder_name(step)).rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
    for step in _steps(root, _DAMAGED):
        if step <= max(saved_steps(root), default=-1):  # a good one has taken its place
            shutil.rmtree(root / f"{DAMAGED_PREFIX}{folder_name(step)}", ignore_errors=True)


def sweep(root: Path) -> list[Path]:
    """Clear what an interrupted save left behind; returns the deleted paths.

    Where a checkpoint was being replaced by one of the same step, and only the old one exists, it is put back.
    """
    left = list(_stages(root))
    for path in left:
        replaced = _REPLACED.fullmatch(path.name)
        if replaced and not (root / replaced[1]).exists():
            path.rename(root / replaced[1])
        else:
            shutil.rmtree(path, ignore_errors=True)
    return [path for path in left if not path.exists()]


def _stages(root: Path) -> Iterator[Path]:
    if root.is_dir():
        yield from (entry for entry in root.iterdir() if entry.name.startswith(STAGE_PREFIX))
