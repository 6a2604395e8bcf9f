"""Resume: which checkpoint to continue from, and whether today's settings and images may continue it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unified_vae.config.presets import FLAGS
from unified_vae.config.run import RunConfig, RunRecord, changed
from unified_vae.core import checkpoint_format, retention
from unified_vae.core.checkpoint_format import Checkpoint
from unified_vae.core.errors import CheckpointError, ConfigError, DataError, shell_quote, uv_run
from unified_vae.core.events import Difference, Observer
from unified_vae.data.sources.find import same_source
from unified_vae.training.distributed import Runtime
from unified_vae.training.state import TrainState

RESOLVED_BY_DATA = ("data.augment.horizontal_flip", "data.augment.affine.translate")
RESOLVED_BY_LENGTH = ("training.ema_decay", "training.validate_every_epochs", "training.samples.every_epochs")
RESOLVED_AT_START = (
    *RESOLVED_BY_DATA,
    *RESOLVED_BY_LENGTH,
    "training.batch_size",
    "training.memory_format",
    "training.compile",
    "data.split_by",
)
"""Settings whose `auto` a run resolved when it began, and keeps."""

MAX_NAMED = 3
"""Settings that an error names before it refers to its table."""

FIXED: Mapping[str, str] = {
    "model.": "the weights in the checkpoint have the old shape",
    "seed": "order, augmentation and noise would change in the middle of the run",
    "training.batch_size": "steps are counted in batches, so the place in the run would be lost",
    "training.optimizer.kind": "the optimizer's state is of the other kind",
    "training.parameter_groups": "the optimizers' state is of other groups",
}

PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".pkl", ".pickle", ".bin", ".distcp", ".joblib")
DCP_METADATA = ".metadata"  # of a folder that torch.distributed.checkpoint wrote


def newest_checkpoint(root: Path, runtime: Runtime, observer: Observer, set_aside: bool = True) -> Checkpoint | None:
    """The newest whole checkpoint of a run, the same on every rank; None where it has none.

    Args:
        root: folder of the checkpoints.
        set_aside: rename damaged ones.
    """
    newest = retention.newest_good(root, observer.notice, set_aside) if runtime.is_main else None
    step = runtime.broadcast_object(newest.step if newest else None)
    return newest if step is None or newest else checkpoint_format.load(root, step)


def reject_pickle_checkpoints(run_dir: Path, checkpoints: Path) -> None:
    """Raise CheckpointError where checkpoints of another program are in the folder of a run, and none of ours.

    They are pickles: opening one runs code in it, so they are named and never opened. To begin afresh there would give
    the impression that they had been continued.
    """
    advice = "name another folder with --run-dir. Only runs of this program can be continued."
    if run_dir.is_file():
        raise CheckpointError(f"{run_dir} is a file, and a run is a folder: {advice}")
    files = [path for folder in (checkpoints, run_dir) if folder.is_dir() for path in folder.iterdir()]
    foreign = [path for path in files if path.name == DCP_METADATA or path.suffix.lower() in PICKLE_SUFFIXES]
    if foreign:
        raise CheckpointError(
            f"{min(foreign)} is a checkpoint of another program, which is not opened because that could run code "
            f"hidden in it: {advice}"
        )


def differences(record: RunRecord, now: RunConfig) -> list[Difference]:
    """Settings that were requested then and now, where they differ.

    Saying explicitly what an `auto` was resolved to is no difference, nor is `auto` for what was resolved then.
    """
    resolved = record.resolved.by_path()
    return [
        Difference(path, old, new)
        for path, (old, new) in changed(record.requested, now).items()
        if (new is None or new != resolved.get(path))
        and not (new == "auto" and path in RESOLVED_AT_START)
        and not (path == "data.source" and same_source(old, new))
    ]


def refuse_impossible(
    differences: Sequence[Difference],
    record: RunRecord,
    names: Mapping[str, str],
    run_dir: object,
    origins: Mapping[str, str] | None = None,
) -> None:
    """Refuse settings that a run cannot change when it is resumed, with a table of them.

    Args:
        names: mode and presets that are requested now.
        origins: dotted path -> where the value of now comes from.

    Raises:
        ConfigError: there are such settings.
    """
    fatal, rows = [], [("setting", "checkpoint", "now", "why it cannot change")]
    for difference in differences:
        path = difference.path
        for start, why in FIXED.items():
            if path == start or (start.endswith(".") and path.startswith(start)):
                fatal.append(difference)
                rows.append((path, str(difference.before), str(difference.now), why))
    if not fatal:
        return
    paths = [difference.path for difference in fatal]
    listed = ", ".join(paths[:MAX_NAMED]) + (f" and {len(paths) - MAX_NAMED} more" if paths[MAX_NAMED:] else "")
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    table = [
        "  " + "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]])
        for row in rows
    ]
    raise ConfigError(
        f"the run in {run_dir} cannot be continued with these settings: {listed} "
        f"{'differs' if len(paths) == 1 else 'differ'} from its checkpoint. "
        f"{_advice(fatal, record.names, names, origins or {}, run_dir)}; or name another --run-dir, or start "
        "afresh with --no-resume (the old run is moved aside, not deleted).",
        table,
    )


def _advice(
    fatal: Sequence[Difference],
    then: Mapping[str, str],
    now: Mapping[str, str],
    origins: Mapping[str, str],
    run_dir: object,
) -> str:
    """What to give so that the run continues: the old mode, the old presets, its whole record, or the old values."""
    if then.get("mode") != now.get("mode") and "mode" in then:
        return f"It was begun with {shell_quote('--mode', then['mode'])}: give that"
    if any(difference.path == "model.family" for difference in fatal):
        command = uv_run("train_unified.py", "--config", f"{run_dir}/config.json", "--run-dir", str(run_dir))
        return f"Its network is of another family, as a preset had it then: {command} continues with all its settings"
    kinds = {difference.path.split(".")[0] for difference in fatal}
    presets = [kind for kind in kinds & then.keys() if then[kind] != now.get(kind)]
    if presets and "mode" not in then:
        options = [word for kind in sorted(presets) for word in (f"--{kind}-preset", then[kind])]
        return f"It was begun with {shell_quote(*options)}"
    if len(fatal) > MAX_NAMED:
        return "Give the old values, which are listed below"
    values = []
    for difference in fatal:  # the option that has no other name, else `--set`, which wins over all
        flag = next((flag for flag, path in FLAGS.items() if path == difference.path), None)
        if flag is None or origins.get(difference.path) == "--set" or difference.before is None:
            values.append(shell_quote("--set", f"{difference.path}={json.dumps(difference.before)}"))
        else:
            values.append(shell_quote(flag, str(difference.before)))
    return f"Give the old value{'s' if len(fatal) > 1 else ''}: {' '.join(values)}"


def adopt_changes(state: TrainState, paths: Sequence[str]) -> None:
    """Let a run with changed settings continue: what it had learned or given up under the old ones is open again.

    Args:
        paths: dotted names of the settings that differ.
    """
    if any(path.startswith(("training.", "loss.")) for path in paths):
        state.stopped_early, state.num_bad_epochs = False, 0
        state.rollbacks = state.consecutive_skips = 0
    if "training.optimizer.lr" in paths:
        state.lr_scale = 1.0
    if "training.gradient_accumulation_steps" in paths:
        state.num_micro_batches, state.validation_micro_batches = 0, 1


def refuse_other_data(record: RunRecord, data: Mapping[str, Any], accept: bool, changes: str) -> Difference | None:
    """The difference in data, where there is one and it is accepted.

    Args:
        changes: what is known of it, e.g. "3 added, 1 edited"; may be empty.

    Raises:
        DataError: the images are not those of the checkpoint, and that was not accepted.
    """
    before, now = record.data["description"], data["description"]
    if record.data["fingerprint"] == data["fingerprint"]:
        return None
    details = f": {changes}" if changes else ""
    if not accept:
        raise DataError(
            f"the images changed since the checkpoint{details}. It was trained on {before}; now there is {now}. Give a "
            "--run-dir of its own to another set, restore the images, continue with --set data.allow_changed_data=true,"
            " or start afresh with --no-resume."
        )
    return Difference("data (accepted)", before, f"{now}{details}")


def refuse_other_counts(record: RunRecord, now: RunConfig, steps_per_epoch: int, run_dir: object) -> None:
    """Raise ConfigError where the place in the run, or what is measured there, would lose its meaning.

    With other images that were accepted, an epoch may have another number of steps: it is the steps that count.
    """
    before, after = record.resolved.training.batch_size, now.training.batch_size
    other_epochs = record.steps_per_epoch != steps_per_epoch and not now.data.allow_changed_data
    if before != after or other_epochs:
        raise ConfigError(
            f"the run in {run_dir} took {record.steps_per_epoch} steps of {before} images per epoch, and would now "
            f"take {steps_per_epoch} of {after}: the place in the run would be lost. Use the same images and number of "
            "processes, or start afresh with --no-resume."
        )
    terms, requested = record.resolved.loss.distortion_terms().keys(), now.loss.distortion_terms().keys()
    if terms != requested:
        raise ConfigError(
            f"the run in {run_dir} was trained with the loss terms {', '.join(terms)}, and is now asked for "
            f"{', '.join(requested)}: a new term has no calibrated scale there. Change weights above 0 only, use "
            "--mode resume_fix, or start afresh with --no-resume."
        )
