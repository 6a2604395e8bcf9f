"""Whether a checkpoint may be continued with today's settings: what may change, what may not, and why. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unified_vae.core.errors import ConfigError, DataError
from unified_vae.experiment.run_config import RunConfig
from unified_vae.experiment.run_folder import RunRecord, changed, leaves
from unified_vae.training.observers import Difference
from unified_vae.training.state import TrainState

FIXED: Mapping[str, str] = {
    "model.": "the weights in the checkpoint have the old shape",
    "seed": "order, augmentation and noise would change in the middle of the run",
    "training.batch_size": "steps are counted in batches, so the place in the run would be lost",
    "training.optimizer.kind": "the optimizer's state is of the other kind",
}


def differences(record: RunRecord, now: RunConfig) -> list[Difference]:
    """Settings that were asked for then and now, where they differ.

    Saying explicitly what an `auto` was resolved to is no difference, nor is leaving the batch to `auto`: it stays.
    """
    resolved = leaves(record.resolved)
    return [
        Difference(path, old, new)
        for path, (old, new) in changed(record.requested, now).items()
        if (new is None or new != resolved.get(path)) and (path, new) != ("training.batch_size", "auto")
    ]


def refuse_impossible(found: list[Difference], run_dir: object) -> None:
    """Raise ConfigError where a setting differs that a run cannot change on its way."""
    lines = [
        f"{difference.path} is {difference.before} in the checkpoint and {difference.now} now ({reason})"
        for difference in found
        for start, reason in FIXED.items()
        if difference.path == start or (start.endswith(".") and difference.path.startswith(start))
    ]
    if lines:
        raise ConfigError(
            f"the run in {run_dir} cannot be continued with these settings: {'; '.join(lines)}. "
            "Give the old values, another --run-dir, or --no-resume for a fresh start (the old run is moved aside)."
        )


def adopt_changes(state: TrainState, paths: Sequence[str]) -> None:
    """Let a run with changed settings go on: what it had learnt or given up under the old ones is open again.

    Args:
        paths: dotted names of the settings that differ.
    """
    if any(path.startswith(("training.", "loss.")) for path in paths):
        state.stopped_early, state.waited = False, 0
        state.rollbacks = state.skipped_in_a_row = 0
    if "training.optimizer.lr" in paths:
        state.lr_scale = 1.0
    if "training.accumulate" in paths:
        state.pieces, state.validation_pieces = 0, 1


def refuse_other_data(record: RunRecord, data: Mapping[str, Any], accept: bool) -> Difference | None:
    """The difference in data, where there is one and it is accepted.

    Raises:
        DataError: the images are not those of the checkpoint, and that was not accepted.
    """
    before, now = record.data, data
    if before["fingerprint"] == now["fingerprint"]:
        return None
    if not accept:
        raise DataError(
            f"the images changed since the checkpoint: it was trained on {before['description']}; now there is "
            f"{now['description']}. Give a --run-dir of its own to another set, restore the images, go on with "
            "--set data.accept_change=true, or start afresh with --no-resume."
        )
    return Difference("data (accepted)", before["description"], now["description"])


def refuse_other_counts(record: RunRecord, now: RunConfig, steps_per_epoch: int, run_dir: object) -> None:
    """Raise ConfigError where the place in the run, or what is measured there, would lose its meaning."""
    before, after = record.resolved.training.batch_size, now.training.batch_size
    if (before, record.steps_per_epoch) != (after, steps_per_epoch):
        raise ConfigError(
            f"the run in {run_dir} took {record.steps_per_epoch} steps of {before} images an epoch, and would now take "
            f"{steps_per_epoch} of {after}: the place in the run would be lost. Use the same images and number of "
            "processes, or start afresh with --no-resume."
        )
    terms, wanted = record.resolved.loss.distortion_terms().keys(), now.loss.distortion_terms().keys()
    if terms != wanted:
        raise ConfigError(
            f"the run in {run_dir} was trained with the loss terms {', '.join(terms)}, and is now asked for "
            f"{', '.join(wanted)}: a new term has no calibrated scale there. Change weights above 0 only, use "
            "--mode resume_fix, or start afresh with --no-resume."
        )
