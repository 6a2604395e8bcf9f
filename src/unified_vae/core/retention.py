"""The checkpoints of a run: which exist, which one to use, which to delete, what an interrupted save left behind."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from unified_vae.core.checkpoint_format import Checkpoint, OtherFormat, folder_name, load
from unified_vae.core.errors import CheckpointError, reason
from unified_vae.core.files import STAGE_PREFIX, discard

DAMAGED_PREFIX = "damaged-"
_STEP = "step-([0-9]{9}|[1-9][0-9]{9,})"
_NAME = re.compile(_STEP)
_DAMAGED = re.compile(re.escape(DAMAGED_PREFIX) + _STEP)
_REPLACED = re.compile(re.escape(f"{STAGE_PREFIX}old-") + f"({_STEP})-[0-9]+")


def saved_steps(root: Path) -> list[int]:
    """Return the steps of the checkpoints in `root`, newest (most steps) first; whether they verify is not checked."""
    return _steps(root, _NAME)


def _steps(root: Path, name: re.Pattern[str]) -> list[int]:
    try:
        matches = [name.fullmatch(entry.name) for entry in root.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CheckpointError(f"{root} cannot be read: {reason(error)}") from error
    return sorted((int(match[1]) for match in matches if match), reverse=True)


def newest_good(
    root: Path, on_message: Callable[[str], None], set_aside: bool = True, at_most: int | None = None
) -> Checkpoint | None:
    """Return the newest checkpoint that verifies; None where there is none at all.

    Args:
        root: folder of the checkpoints.
        on_message: receives a line for every damaged one that was passed over.
        set_aside: rename those, so that they are neither counted nor pruned as newest ones.
        at_most: steps of the newest one to consider; None for all.

    Raises:
        OtherFormat: the newest whole one is of another version.
        CheckpointError: there are checkpoints, and all of them are damaged.
    """
    steps = [step for step in saved_steps(root) if at_most is None or step <= at_most]
    damaged = []
    for step in steps:
        try:
            checkpoint = load(root, step)
        except OtherFormat:
            raise
        except CheckpointError as error:
            on_message(f"checkpoint of step {step} is not used: {error}")
            damaged.append(step)
            continue
        for bad in damaged if set_aside else ():
            aside = root / f"{DAMAGED_PREFIX}{folder_name(bad)}"
            discard(aside)
            try:
                (root / folder_name(bad)).rename(aside)
            except OSError as error:
                on_message(f"{root / folder_name(bad)} cannot be set aside: {reason(error)}")
        return checkpoint
    if steps:
        raise CheckpointError(
            f"all {len(steps)} checkpoints in {root} are damaged. Restore one from a backup, "
            "or start afresh with --no-resume (the old run is moved aside, not deleted)."
        )
    return None


def prune(root: Path, keep_last: int, keep: Callable[[int], bool]) -> None:
    """Delete old checkpoints, except the newest `keep_last` and those that `keep` names.

    A folder is renamed before it is emptied, so that a crash leaves no half checkpoint under a valid name.

    Raises:
        OSError: one of them could not be deleted.
    """
    for step in saved_steps(root)[keep_last:]:
        if not keep(step):
            _delete(root, step)
    for step in _steps(root, _DAMAGED):
        if step <= max(saved_steps(root), default=-1):  # a good one has taken its place
            shutil.rmtree(root / f"{DAMAGED_PREFIX}{folder_name(step)}")


def delete_after(root: Path, step: int) -> None:
    """Delete the checkpoints of more than `step` steps, the newest first.

    Raises:
        OSError: one of them could not be deleted.
    """
    for later in saved_steps(root):
        if later > step:
            _delete(root, later)


def _delete(root: Path, step: int) -> None:
    doomed = root / f"{STAGE_PREFIX}{folder_name(step)}-pruned"
    discard(doomed)
    (root / folder_name(step)).rename(doomed)
    shutil.rmtree(doomed)


def sweep(root: Path) -> None:
    """Clear what an interrupted save left behind; a checkpoint that was being replaced is put back."""
    entries = list(root.iterdir()) if root.is_dir() else []
    for path in (entry for entry in entries if entry.name.startswith(STAGE_PREFIX)):
        replaced = _REPLACED.fullmatch(path.name)
        if replaced and not (root / replaced[1]).exists():
            path.rename(root / replaced[1])
        else:
            discard(path)
