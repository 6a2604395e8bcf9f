"""The checkpoint format: a folder `step-000001234/` of safetensors files, JSON, and a manifest that is written last.

The manifest lists the files with sizes and SHA-256, and ends with a checksum of itself: a checkpoint without a valid
manifest does not exist. No pickle, and no pointer to "the last": the newest folder that verifies is the one to use.
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

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from unified_vae.core import __version__
from unified_vae.core.errors import CheckpointError, reason
from unified_vae.core.files import STAGE_PREFIX, discard, sync_file, sync_folder

FORMAT = 1
MANIFEST = "MANIFEST.json"
STATE = "state.json"
TENSORS = ".safetensors"
MAX_MANIFEST_BYTES = 1 << 20  # a manifest has about a kilobyte
# What reading or writing a file of tensors may raise; the library's checks of a header are errors of several kinds.
TENSOR_FILE_ERRORS = (
    SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, OverflowError,
)  # fmt: skip

TensorGroups = Mapping[str, Mapping[str, Tensor]]


class OtherFormat(CheckpointError):
    """A whole checkpoint that another version wrote in another format."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to continue as if it had never stopped.

    Attributes:
        step: optimizer steps taken.
        groups: file stem -> tensors, e.g. `model`, `ema`, `optimizer`, `objective`.
        state: plain JSON values.
    """

    step: int
    groups: TensorGroups
    state: Mapping[str, Any]

    def tensors(self, name: str) -> Mapping[str, Tensor]:
        """Return the tensors of a group; raises CheckpointError where there are none."""
        if name not in self.groups:
            raise CheckpointError(f"the checkpoint of step {self.step:,} has no {name}{TENSORS}: it is of another kind")
        return self.groups[name]

    def entry(self, name: str) -> Any:
        """Return an entry of the state; raises CheckpointError where there is none."""
        if name not in self.state:
            raise CheckpointError(
                f"the checkpoint of step {self.step:,} has no entry {name} in its {STATE}: it is of another kind"
            )
        return self.state[name]


def folder_name(step: int) -> str:
    """Return the name of a checkpoint's folder: `step-000001234`."""
    return f"step-{step:09d}"


def save(root: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint and return its folder; a crash at any moment leaves either all of it or none.

    Args:
        root: has to exist. It is not made here: where it vanished in the middle of a run, a disk may have gone with it,
            and a new folder would be on another one.

    Raises:
        CheckpointError: the disk is full, not writable or gone; nothing is left under the final name.
    """
    final = root / folder_name(checkpoint.step)
    stage = root / f"{STAGE_PREFIX}{final.name}-{os.getpid()}"
    discard(stage)
    try:
        stage.mkdir()
        for name, tensors in checkpoint.groups.items():
            _write_staged(stage / f"{name}{TENSORS}", tensors)
        (stage / STATE).write_text(json.dumps(checkpoint.state, indent=1), encoding="utf-8")
        sync_file(stage / STATE)
        # the manifest comes last: a checkpoint without a valid one does not exist
        files = {}
        for path in sorted(stage.iterdir()):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            files[path.name] = {"bytes": path.stat().st_size, "sha256": digest}
        written_by = f"unified-vae {__version__}"
        content = {"format": FORMAT, "step": checkpoint.step, "written_by": written_by, "files": files}
        text = json.dumps({**content, "seal": seal(content)}, indent=1)
        (stage / MANIFEST).write_text(text, encoding="utf-8")
        sync_file(stage / MANIFEST)
        sync_folder(stage)
        _publish(stage, final)
        sync_folder(root)
    except (OSError, SafetensorError) as error:
        discard(stage)
        raise CheckpointError(
            f"the checkpoint of step {checkpoint.step:,} could not be saved in {root} ({reason(error)})"
        ) from error
    return final


def _publish(stage: Path, final: Path) -> None:
    """Rename into place, also over a checkpoint of the same step from before a resume."""
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
        path = folder / name
        data = _read_verified(path, expected)
        try:
            if name == STATE:
                state = json.loads(data.decode("utf-8"))
            elif name.endswith(TENSORS):
                groups[name.removesuffix(TENSORS)] = safetensors.torch.load(data)
        except (RecursionError, *TENSOR_FILE_ERRORS) as error:
            kind = "JSON" if name == STATE else "file of tensors"
            raise CheckpointError(f"{path} is not a {kind}: {reason(error)}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{folder / STATE} does not hold the state of a run")
    return Checkpoint(step, groups, state)


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Load a state dict, exactly; a module with `upgrade_state_dict` first adapts that of an earlier version.

    Raises:
        CheckpointError: names or shapes differ; the sentence says how many and the first of them.
    """
    upgrade = getattr(module, "upgrade_state_dict", None)
    tensors = upgrade(tensors) if upgrade else tensors

    def describe(values: Mapping[str, Tensor]) -> dict[str, str]:
        return {key: f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}" for key, value in values.items()}

    expected, given = describe(module.state_dict()), describe(tensors)
    differing = sorted(key for key in expected.keys() | given.keys() if expected.get(key) != given.get(key))
    if differing:
        first = differing[0]
        raise CheckpointError(
            f"the checkpoint is of another {name}: {len(differing)} tensors differ, the first is {first} "
            f"(checkpoint {given.get(first, 'absent')}, now {expected.get(first, 'absent')})."
        )
    with torch.no_grad():
        module.load_state_dict(dict(tensors))


def _read_verified(path: Path, expected: Mapping[str, Any]) -> bytes:
    """A file's content, if it is what was saved."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path} is not a file")
        if status.st_size != expected["bytes"]:
            raise CheckpointError(f"{path} has {status.st_size:,} bytes instead of {expected['bytes']:,}")
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {reason(error)}") from error
    if hashlib.sha256(data).hexdigest() != expected["sha256"]:
        raise CheckpointError(f"{path} does not match its sha256: it was damaged or changed after it was saved")
    return data


def seal(content: Mapping[str, Any]) -> str:
    """Return the manifest's own checksum, so that damage to it is not taken for damage to the files it names."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path, step: int) -> Mapping[str, Mapping[str, Any]]:
    """Return file name -> `bytes` and `sha256`, of the checkpoint of `step`.

    Raises:
        OtherFormat: it is whole, and of another format.
        CheckpointError: it is missing, damaged, or of something else.
    """
    path = folder / MANIFEST
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError("it is not a file")
        with path.open("rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
        if len(data) > MAX_MANIFEST_BYTES:
            raise ValueError("it is too large")
        content = json.loads(data.decode("utf-8"))
        # only the very text that `save` writes is read, so that no change of a single bit passes
        unchanged = isinstance(content, dict) and data == json.dumps(content, indent=1).encode()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {reason(error)}") from error
    if not unchanged or content.pop("seal", None) != seal(content):
        raise CheckpointError(f"{path} does not match its own checksum: it was damaged or changed after it was saved")
    if content.get("format") != FORMAT:
        raise OtherFormat(
            f"{folder} was written by {content.get('written_by', 'another version')} in format "
            f"{content.get('format')}; this is unified-vae {__version__}, which reads format {FORMAT}. "
            "Continue with that version, or start afresh with --no-resume (the old run is moved aside, not deleted)."
        )

    # every entry names a file inside the folder, with a size and a checksum
    files = content.get("files")
    whole = isinstance(files, dict) and STATE in files
    for name, entry in files.items() if whole else ():
        inside = Path(name).name == name and name not in ("", ".", "..") and "\0" not in name
        entry = entry if isinstance(entry, dict) else {}
        whole &= inside and isinstance(entry.get("bytes"), int) and isinstance(entry.get("sha256"), str)
    if not whole:
        raise CheckpointError(f"{path} does not describe a checkpoint")
    if content.get("step") != step:
        raise CheckpointError(f"{path} is of step {content.get('step')}, its folder of step {step}: it was renamed")
    return files


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write or replace a safetensors file in one step.

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
        _write_staged(stage / path.name, tensors, metadata)
        (stage / path.name).replace(path)
        sync_folder(path.parent)
    finally:
        discard(stage)


def _write_staged(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a file of tensors into a folder that is staged itself, and wait until it is on the disk.

    The library writes beside it first, under a name of its own and for its owner alone: the file gets the rights that
    any other new file gets.
    """
    path.touch()
    rights = path.stat().st_mode
    on_cpu = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    safetensors.torch.save_file(on_cpu, path, dict(metadata or {"format": "pt"}))
    path.chmod(rights)
    sync_file(path)
