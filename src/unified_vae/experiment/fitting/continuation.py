"""Whether a checkpoint may be continued with today's settings: what may change, what may not, and why. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from unified_vae.config.presets import FLAGS
from unified_vae.config.run import RunConfig
from unified_vae.core.errors import ConfigError, DataError
from unified_vae.core.shell import quoted, uv_run
from unified_vae.experiment.run_folder import RunRecord, changed, leaves
from unified_vae.training.observers import Difference
from unified_vae.training.state import TrainState

FOUND_OUT = ("training.batch_size", "training.memory_format", "training.compile")
"""Settings that a run found out when it began, and keeps."""
MOST_NAMED = 3
"""Settings that an error names before it refers to its table."""

FIXED: Mapping[str, str] = {
    "model.": "the weights in the checkpoint have the old shape",
    "seed": "order, augmentation and noise would change in the middle of the run",
    "training.batch_size": "steps are counted in batches, so the place in the run would be lost",
    "training.optimizer.kind": "the optimizer's state is of the other kind",
}


def differences(record: RunRecord, now: RunConfig) -> list[Difference]:
    """Settings that were asked for then and now, where they differ.

    Saying explicitly what an `auto` was resolved to is no difference, nor is `auto` for what was
    found out then: it stays.
    """
    resolved = leaves(record.resolved)
    return [
        Difference(path, old, new)
        for path, (old, new) in changed(record.requested, now).items()
        if (new is None or new != resolved.get(path)) and not (new == "auto" and path in FOUND_OUT)
    ]


def refuse_impossible(
    found: Sequence[Difference],
    record: RunRecord,
    names: Mapping[str, str],
    run_dir: object,
    origins: Mapping[str, str] | None = None,
) -> None:
    """Refuse settings that a run cannot change on its way, with a table of them.

    Args:
        names: mode and presets that are asked for now.
        origins: dotted path -> where the value of now comes from.

    Raises:
        ConfigError: there are such settings.
    """
    fatal = [difference for difference in found if _why_fixed(difference.path)]
    if not fatal:
        return
    paths = [difference.path for difference in fatal]
    listed = ", ".join(paths[:MOST_NAMED]) + (f" and {len(paths) - MOST_NAMED} more" if paths[MOST_NAMED:] else "")
    advice = _nearest_fix(fatal, record.names, names, origins or {}, run_dir)
    raise ConfigError(
        f"the run in {run_dir} cannot be continued with these settings: {listed} {_differ(len(paths))} from its "
        f"checkpoint. {advice}; or name another --run-dir, or start "
        "afresh with --no-resume (the old run is moved aside, not deleted).",
        _table(fatal),
    )


def _why_fixed(path: str) -> str | None:
    """Why a setting cannot change; None where it can."""
    matches = (
        reason for start, reason in FIXED.items() if path == start or (start.endswith(".") and path.startswith(start))
    )
    return next(matches, None)


def _differ(count: int) -> str:
    return "differs" if count == 1 else "differ"


def _nearest_fix(
    fatal: Sequence[Difference],
    then: Mapping[str, str],
    now: Mapping[str, str],
    origins: Mapping[str, str],
    run_dir: object,
) -> str:
    """What to give so that the run goes on: the old mode, the old presets, its whole record, or the old values."""
    if then.get("mode") != now.get("mode") and "mode" in then:
        return f"It was begun with {quoted('--mode', then['mode'])}: give that"
    if any(difference.path == "model.family" for difference in fatal):
        command = uv_run("train_unified.py", "--config", f"{run_dir}/config.json", "--run-dir", str(run_dir))
        return f"Its network is of another family, as a preset had it then: {command} goes on with all that it had"
    kinds = {difference.path.split(".")[0] for difference in fatal}
    presets = [kind for kind in kinds & then.keys() if then[kind] != now.get(kind)]
    if presets and "mode" not in then:
        return "It was begun with " + quoted(
            *(word for kind in sorted(presets) for word in (f"--{kind}-preset", then[kind]))
        )
    if len(fatal) <= MOST_NAMED:
        values = " ".join(_option(difference, origins.get(difference.path, "")) for difference in fatal)
        return f"Give the old value{'s' if len(fatal) > 1 else ''}: {values}"
    return "Give the old values, which are listed below"


def _option(difference: Difference, origin: str) -> str:
    """What gives the old value: the option that has no other name, else `--set`, which wins over all."""
    flag = next((flag for flag, path in FLAGS.items() if path == difference.path), None)
    if flag is None or origin == "--set" or difference.before is None:
        return quoted("--set", f"{difference.path}={json.dumps(difference.before)}")
    return quoted(flag, str(difference.before))


def _table(fatal: Sequence[Difference]) -> list[str]:
    """`setting | in the checkpoint | now | why it cannot change`, in columns."""
    rows = [("setting", "checkpoint", "now", "why it cannot change")]
    rows += [(each.path, str(each.before), str(each.now), _why_fixed(each.path) or "") for each in fatal]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return [
        "  " + "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]])
        for row in rows
    ]


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
    if "training.gradient_accumulation_steps" in paths:
        state.pieces, state.validation_pieces = 0, 1


def refuse_other_data(record: RunRecord, data: Mapping[str, Any], accept: bool, changes: str) -> Difference | None:
    """The difference in data, where there is one and it is accepted.

    Args:
        changes: what is known of it, e.g. "3 added, 1 edited"; may be empty.

    Raises:
        DataError: the images are not those of the checkpoint, and that was not accepted.
    """
    before, now = record.data, data
    if before["fingerprint"] == now["fingerprint"]:
        return None
    told = f": {changes}" if changes else ""
    if not accept:
        raise DataError(
            f"the images changed since the checkpoint{told}. It was trained on {before['description']}; now there is "
            f"{now['description']}. Give a --run-dir of its own to another set, restore the images, go on with "
            "--set data.allow_changed_data=true, or start afresh with --no-resume."
        )
    return Difference("data (accepted)", before["description"], f"{now['description']}{told}")


def refuse_other_counts(record: RunRecord, now: RunConfig, steps_per_epoch: int, run_dir: object) -> None:
    """Raise ConfigError where the place in the run, or what is measured there, would lose its meaning.

    With other images that were accepted, an epoch may have another number of steps: it is the steps that count.
    """
    before, after = record.resolved.training.batch_size, now.training.batch_size
    other_epochs = record.steps_per_epoch != steps_per_epoch and not now.data.allow_changed_data
    if before != after or other_epochs:
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
