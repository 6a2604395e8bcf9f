"""Plan a run from a mode, from presets or from the record of an earlier run. Imports no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from unified_vae.config.presets import PresetBook, read_record
from unified_vae.config.run import ComposedRun, RunConfig, changed
from unified_vae.config.settings import Settings
from unified_vae.config.upgrade import upgrade
from unified_vae.core.errors import ConfigError, truncate
from unified_vae.core.files import is_file, with_affixes
from unified_vae.core.run_dir import RunFolder
from unified_vae.data.sources.find import check_not_empty, check_source, source_path

RUNS = Path("runs")
RECORD = "config.json"
WEIGHTS = "model.safetensors"  # of an exported model, whose config.json is not a run's

DEFAULT_PRESETS = {
    "loss": "high_quality",
    "training": "fast_high_quality_training",
    "model": "fast_high_quality",
    "dataset": "full",
    "augment": "auto",
}
"""What train_unified.py takes where an option is left out."""

INHERITED_SETTINGS = (
    "seed",
    "device",
    "data",
    "model",
    "density",
    "training.optimizer",
    "training.batch_size",
    "training.gradient_accumulation_steps",
    "training.precision",
    "loss.perceptual.weights_path",
    "loss.lpips.weights_path",
)
"""What a run that fixes another takes from it: data, split, model, density, optimizer and rate, what fitted in
memory, where files are."""


@dataclass(frozen=True)
class RunRequest:
    """One start of a run.

    Attributes:
        run: the composed settings.
        run_dir: the run's folder.
        resume: continue what is in `run_dir`; otherwise move it aside and start afresh.
        command: the command line that starts this run again, for messages.
        fix_from: for `resume_fix`, the folder of the run to fix; None for every other mode.
    """

    run: ComposedRun
    run_dir: Path
    resume: bool = True
    command: str = ""
    fix_from: Path | None = None


def plan_mode(book: PresetBook, name: str, command_line: Settings, run_dir: Path | None) -> RunRequest:
    """Plan the run of a mode; its folder is `runs/<mode>` unless named.

    For a mode that fixes an earlier run, `run_dir` names that run; the new one goes to `<that run>-fixed`.

    Raises:
        ConfigError: an unknown mode, no run to fix, a damaged record, or a value that does not fit.
    """
    mode = book.mode(name)
    if mode.fixes is None:
        run = book.compose(mode.presets, command_line, mode=mode)
        default = RUNS / mode.name if book.record is None else _beside(book.record.path.parent, "-again")
        return RunRequest(run, run_dir or default)
    source_run = run_dir or Path(mode.fixes)
    refuse_model_folder(source_run)
    record = source_run / RECORD
    if not is_file(record):
        raise ConfigError(
            f"there is no run to fix in {truncate(str(source_run))}: name its folder with --run-dir, "
            "or train one first with --mode fast_high_quality"
        )
    file = read_record(record)
    names = {kind: name for kind, name in (file.presets or {}).items() if kind in ("model", "dataset", "augment")}
    inherited = file.settings.only(INHERITED_SETTINGS)
    run = book.compose(mode.presets, command_line, mode=mode, inherited=inherited, names={**names, **mode.presets})
    return RunRequest(run, _beside(source_run, "-fixed"), fix_from=source_run)


def plan_presets(
    book: PresetBook, chosen: Mapping[str, str | None], command_line: Settings, run_dir: Path | None
) -> RunRequest:
    """Plan the run of five presets; its folder is `runs/<loss>-<training>-<model>-<dataset>` unless named.

    An augment preset other than the default is added to the folder's name. Where the book holds the record of a run,
    that run is repeated, in `<that run>-again` unless named.

    Args:
        chosen: kind of preset -> name; None takes the default, or what the record says.
    """
    requested = {kind: name for kind, name in chosen.items() if name is not None}
    if book.record is not None:
        run = book.compose(requested, command_line, names={**(book.record.presets or {}), **requested})
        return RunRequest(run, run_dir or _beside(book.record.path.parent, "-again"))
    presets = DEFAULT_PRESETS | requested
    run = book.compose(presets, command_line)
    kinds = [kind for kind in presets if kind != "augment" or presets[kind] != DEFAULT_PRESETS[kind]]
    return RunRequest(run, run_dir or RUNS / "-".join(presets[kind] for kind in kinds))


def check_request(request: RunRequest) -> None:
    """Find at once, without torch, what would stop the run after seconds of loading.

    Raises:
        DataError: the images are not where the run looks for them.
        ConfigError: the run would write into the folder of the images, or into that of a model.
        EnvironmentProblem: the run's folder cannot be written.
    """
    source = request.run.config.data.source
    check_source(source)
    if os.path.realpath(source_path(source)) == os.path.realpath(request.run_dir):  # never fails, also not on loops
        raise ConfigError(f"--run-dir and --data are the same folder, {source}: give the run a folder of its own")
    check_not_empty(source)
    refuse_model_folder(request.run_dir)
    RunFolder(request.run_dir).refuse_unwritable()


def seems_finished(request: RunRequest) -> bool:
    """Return whether the folder seems to hold the model of a finished run of these very settings.

    Judged by names of files alone: it only decides what is shown first, `fit` finds out what there is to do.
    """
    folder = RunFolder(request.run_dir)
    try:
        record = json.loads(folder.config.read_text(encoding="utf-8"))
        requested = RunConfig.model_validate(upgrade(record["requested"]))
        about = json.loads((folder.model / folder.config.name).read_text(encoding="utf-8"))
        newest = max(path.name for path in folder.checkpoints.glob("step-*"))
        is_over = newest == f"step-{about['run']['trained_steps']:09}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return is_over and not changed(requested, request.run.config)


def refuse_model_folder(run_dir: Path) -> None:
    """Raise ConfigError where the folder named as a run's is that of an exported model."""
    if not is_file(run_dir / WEIGHTS):
        return
    parent = Path(os.path.normpath(run_dir / os.pardir)) if run_dir.name else run_dir.resolve().parent
    is_of_run = is_file(parent / RECORD) and (parent / "checkpoints").is_dir()
    advice = (
        f"name its run, {truncate(str(parent))}" if is_of_run else "name the folder of a run, which has checkpoints"
    )
    raise ConfigError(f"{truncate(str(run_dir))} is the folder of a model, not of a run: {advice}, with --run-dir")


def _beside(run_dir: Path, suffix: str) -> Path:
    """A folder beside a run's, for its repetition or repair: never the run's own."""
    return with_affixes(run_dir if run_dir.name else run_dir.resolve(), after=suffix)
