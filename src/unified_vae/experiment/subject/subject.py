"""What is to be diagnosed: a run, one of its checkpoints, or an exported model. Everything here is only read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from unified_vae.config.data import DataConfig
from unified_vae.config.loss import LossConfig
from unified_vae.config.run import RunConfig
from unified_vae.config.upgrade import upgrade_part
from unified_vae.core import checkpoint_format
from unified_vae.core.checkpoint_format import Checkpoint
from unified_vae.core.errors import CheckpointError, ConfigError
from unified_vae.core.paths import above
from unified_vae.experiment.run_folder import RunFolder, RunRecord
from unified_vae.models.build import build_model
from unified_vae.models.pretrained import CONFIG, WEIGHTS, Pretrained, open_pretrained
from unified_vae.models.vae import VAE
from unified_vae.training import retention
from unified_vae.training.checkpointer import load_weights, train_state
from unified_vae.training.state import TrainState

PIXEL_TERMS = ("mse", "l1", "charbonnier")  # means of pixel errors
WORDS = {"ema": "averaged", "raw": "raw"}
WeightsName = Literal["ema", "raw"]
"""Averaged over the steps, or as stepped."""
_STEP = re.compile(r"step-(\d{9})")


@dataclass(frozen=True)
class Subject:
    """A model and what is known of its training.

    Attributes:
        name: for the title, e.g. `runs/x at step 1,234`.
        model: the averaged weights unless others were asked for, on the CPU.
        config: as resolved; for a model without its run, what its own file says.
        home: folder where the diagnosis is written unless told otherwise.
        run_dir: None for a model without its run.
        record: what the run says of itself; None likewise.
        step: of the weights; None where unknown.
        state: the numbers of the newest checkpoint; None without one.
        terms: name -> running mean of a distortion term.
        weights: which of the two sets of weights the model has.
        folder: the exported model's that it was read from; None for a checkpoint.
    """

    name: str
    model: VAE
    config: RunConfig
    home: Path
    run_dir: Path | None = None
    record: RunRecord | None = None
    step: int | None = None
    state: TrainState | None = None
    terms: Mapping[str, float] = field(default_factory=dict)
    weights: WeightsName = "ema"
    folder: Path | None = None

    def pixel_share(self) -> float | None:
        """The part of the distortion that is a mean of pixel errors."""
        enabled = self.config.loss.distortion_terms()
        parts = {name: enabled[name].weight * mean for name, mean in self.terms.items() if name in enabled}
        total = sum(parts.values())
        return sum(parts.get(name, 0.0) for name in PIXEL_TERMS) / total if total > 0 else None


def find(
    target: Path,
    which: str | None,
    data: str | None,
    notice: Callable[[str], None],
    *,
    weights: WeightsName | None = None,
    looks: bool = True,
) -> Subject:
    """Read what `target` names.

    Args:
        target: a run's folder, a checkpoint's folder inside it, or the folder of an exported model.
        which: a step, `best` or `last`; None takes the best where the run knows one.
        data: the images, for a model without its run.
        weights: None takes the averaged ones of a checkpoint, and of an exported model those it has.
        looks: whether images will be looked at; false: a model without its run needs no `data`.

    Raises:
        ConfigError: it is none of these, a model without its run and without `data`, or one that has other weights.
        CheckpointError: the run has no such checkpoint, or none that is whole.
    """
    if match := _STEP.fullmatch(target.resolve().name):
        if which is not None:
            raise ConfigError(f"{target} is one checkpoint already: leave --checkpoint out, or name the run's folder")
        return _of_run(above(target, 2), match[1], notice, weights or "ema")
    if (target / WEIGHTS).is_file() and (target / CONFIG).is_file():
        return _of_model(target, which, data, weights, looks)
    if not RunFolder(target).has_run():
        known = "Name the folder of a run (runs/NAME), of one of its checkpoints, or of an exported model"
        raise ConfigError(f"{target} is {'no run' if target.is_dir() else 'not there'}. {known}.")
    return _of_run(target, which, notice, weights or "ema")


def _of_run(run_dir: Path, which: str | None, notice: Callable[[str], None], weights: WeightsName) -> Subject:
    root = RunFolder(run_dir).checkpoints
    newest = retention.newest_good(root, notice, set_aside=False)
    if newest is None:
        raise CheckpointError(f"{run_dir} has no checkpoint yet: a run saves its first one after its first epoch.")
    state = train_state(newest)
    saved, words = _chosen(root, which, newest, state)
    record = RunRecord.from_json(saved.entry("record"), run_dir)
    model = build_model(record.resolved.model, seed=0)
    load_weights(model, saved.tensors("ema" if weights == "ema" else "model"), "model")
    means = {name.removeprefix("mean_"): value for name, value in saved.tensors("objective").items()}
    return Subject(
        name=f"{run_dir.as_posix()} at step {saved.step:,}{words}{'' if weights == 'ema' else ', raw weights'}",
        model=model.eval(),
        config=record.resolved,
        home=run_dir,
        run_dir=run_dir,
        record=record,
        step=saved.step,
        state=state,
        terms=_floats(means),
        weights=weights,
    )


def _chosen(root: Path, which: str | None, newest: Checkpoint, state: TrainState) -> tuple[Checkpoint, str]:
    """The checkpoint that is meant, and what to call it."""
    if which == "last" or (which is None and state.best_step is None):
        return newest, " (last)"
    if which in (None, "best"):
        if state.best_step is None:
            raise CheckpointError(f"the run in {root.parent} has no best weights yet: its warm-ups are not over.")
        words = " (best)" if state.best_step != newest.step else " (best and last)"
        return newest if state.best_step == newest.step else checkpoint_format.load(root, state.best_step), words
    assert which is not None
    steps = retention.saved_steps(root)
    if not which.isdigit() or int(which) not in steps:
        have = ", ".join(str(step) for step in steps)
        raise ConfigError(f"--checkpoint {which}: the run in {root.parent} has best, last and the steps {have}")
    return checkpoint_format.load(root, int(which)), ""


def _of_model(folder: Path, which: str | None, data: str | None, weights: WeightsName | None, looks: bool) -> Subject:
    if which is not None:
        raise ConfigError(f"{folder} is an exported model, which has one set of weights: leave --checkpoint out")
    opened = open_pretrained(folder)
    model, about = opened.model, opened.description
    run = about.get("run", {})
    step, has = run.get("step"), _weights_of(run)
    if weights not in (None, has):
        raise ConfigError(
            f"{folder} is an exported model, which has {WORDS[has]} weights alone: name its run for others"
        )
    name = f"{folder.as_posix()}{'' if has == 'ema' else ', raw weights'}"
    record = _record_beside(folder)
    if record is not None:
        run_dir = above(folder, 1)
        return Subject(name, model, record.resolved, run_dir, run_dir, record, step, weights=has, folder=folder)
    if data is None and looks:
        raise ConfigError(f"{folder} is a model without its run: name the images to look at with --data")
    try:
        loss = LossConfig.model_validate(upgrade_part("loss", about["loss"]))
    except (KeyError, ValidationError) as problem:
        if not looks:
            return Subject(name, model, _bare(opened, data), folder, step=step, weights=has, folder=folder)
        raise CheckpointError(
            f"the model in {folder} was exported by another version of unified-vae: its {CONFIG} says nothing of the "
            "loss that this one understands. Diagnose it with that version."
        ) from problem
    config = _bare(opened, data).replace(loss=loss)
    return Subject(name, model, config, folder, step=step, weights=has, folder=folder)


def _weights_of(run: Mapping[str, Any]) -> WeightsName:
    """What a model's config file says of them; those that a run exports by itself are averaged."""
    return "raw" if run.get("weights") == "raw" else "ema"


def _bare(opened: Pretrained, data: str | None) -> RunConfig:
    """What is known without a run: the model, and the images where they were named."""
    named: dict[str, Any] = {} if data is None else {"source": data}
    if "background" in opened.description:
        named["background"] = str(opened.description["background"])
    return RunConfig(model=opened.config, data=DataConfig(**upgrade_part("data", named)))


def _record_beside(folder: Path) -> RunRecord | None:
    """The record of the run that a model lies in; None where it was copied elsewhere."""
    path = RunFolder(folder.resolve().parent).config
    try:
        return RunRecord.from_json(json.loads(path.read_text(encoding="utf-8")), path.parent)
    except (OSError, ValueError):
        return None


def _floats(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    return {
        name: float(value) for name, value in tensors.items() if value.numel() == 1 and torch.is_floating_point(value)
    }
