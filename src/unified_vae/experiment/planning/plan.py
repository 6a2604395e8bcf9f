"""From a mode or five preset names to a run and the folder it goes to: what both doors share."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from unified_vae.config.explain import Settings
from unified_vae.config.presets import Mode, PresetBook
from unified_vae.config.run import ComposedRun, RunConfig
from unified_vae.config.upgrade import upgrade
from unified_vae.core.errors import ConfigError
from unified_vae.data.sources.find import check_not_empty, check_source, source_path
from unified_vae.experiment.planning.earlier_run import beside, read_earlier_run, refuse_model
from unified_vae.experiment.run_folder import RunFolder, changed

RUNS = Path("runs")

USUAL_PRESETS = {
    "loss": "mse_l1",
    "training": "standard_training",
    "model": "small",
    "dataset": "full",
    "augment": "none",
}
"""What train_unified.py takes where an option is left out."""


@dataclass(frozen=True)
class Plan:
    """A composed run and its folder.

    Attributes:
        fix_from: the folder of the run to be cured; None unless the mode fixes one.
    """

    run: ComposedRun
    run_dir: Path
    fix_from: Path | None = None


def plan_mode(book: PresetBook, name: str, command_line: Settings, run_dir: Path | None) -> Plan:
    """The run of a mode; its folder is `runs/<mode>` unless named.

    For a mode that fixes an earlier run, `run_dir` names that run, and the fixed one goes beside it.

    Raises:
        ConfigError: an unknown mode, no run to fix, or a value that does not fit.
    """
    mode = book.mode(name)
    if mode.fixes is not None:
        return _plan_fix(book, mode, command_line, run_dir or Path(mode.fixes))
    run = book.compose(mode.presets, command_line, mode=mode)
    return Plan(run, run_dir or _usual_folder(book, mode.name))


def plan_presets(
    book: PresetBook, chosen: Mapping[str, str | None], command_line: Settings, run_dir: Path | None
) -> Plan:
    """The run of five presets; its folder is `runs/<loss>-<training>-<model>-<dataset>` unless named.

    An augment preset other than the usual one is added to the folder's name.

    Args:
        chosen: kind of preset -> name; None takes the usual one, or what a run's own config.json says.
    """
    given = {kind: name for kind, name in chosen.items() if name is not None}
    if book.record is not None:
        run = book.compose(given, command_line, names={**book.record_names, **given})
        return Plan(run, run_dir or _usual_folder(book, ""))
    presets = USUAL_PRESETS | given
    run = book.compose(presets, command_line)
    kinds = [kind for kind in presets if kind != "augment" or presets[kind] != USUAL_PRESETS[kind]]
    return Plan(run, run_dir or RUNS / "-".join(presets[kind] for kind in kinds))


def plan_record(book: PresetBook, command_line: Settings, run_dir: Path | None) -> Plan:
    """The run of another run's config.json once more; its folder is `<that run>-again` unless named."""
    return plan_presets(book, {}, command_line, run_dir)


def check(plan: Plan) -> None:
    """Find at once, without torch, what would stop the run after seconds of loading.

    Raises:
        DataError: the images are not where the run looks for them.
        ConfigError: the run would write into the folder of the images, or into that of a model.
        EnvironmentProblem: the run's folder cannot be written.
    """
    source = plan.run.config.data.source
    check_source(source)
    if os.path.realpath(source_path(source)) == os.path.realpath(plan.run_dir):  # never fails, also not on loops
        raise ConfigError(f"--run-dir and --data are the same folder, {source}: give the run a folder of its own")
    check_not_empty(source)
    refuse_model(plan.run_dir)
    RunFolder(plan.run_dir).refuse_unwritable()


def has_its_model(plan: Plan) -> bool:
    """Whether the folder seems to hold the model of a finished run of these very settings, by names of files alone.

    Only what is shown first hangs on it: what there is to do, `fit` finds out.
    """
    folder = RunFolder(plan.run_dir)
    try:
        record = json.loads(folder.config.read_text(encoding="utf-8"))
        requested = RunConfig.model_validate(upgrade(record["requested"]))
        about = json.loads((folder.model / folder.config.name).read_text(encoding="utf-8"))
        newest = max(path.name for path in folder.checkpoints.glob("step-*"))
        over = newest == f"step-{about['run']['trained_steps']:09}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return over and not changed(requested, plan.run.config)


def _plan_fix(book: PresetBook, mode: Mode, command_line: Settings, sick: Path) -> Plan:
    earlier = read_earlier_run(sick)
    handed = {kind: earlier.names[kind] for kind in ("model", "dataset", "augment") if kind in earlier.names}
    run = book.compose(
        mode.presets, command_line, mode=mode, inherited=earlier.handed_on(), names={**handed, **mode.presets}
    )
    return Plan(run, beside(sick, "-fixed"), fix_from=sick)


def _usual_folder(book: PresetBook, name: str) -> Path:
    """`runs/<name>`; for the repetition of a recorded run, a folder beside that run, never the run's own."""
    return RUNS / name if book.record is None else beside(book.record.parent, "-again")
