"""Open a trained model: a run, one of its checkpoints, a model's folder, or a name on the hub. Nothing is written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError

from unified_vae.config.data import DataConfig
from unified_vae.config.loss import LossConfig
from unified_vae.config.run import RunConfig, RunRecord
from unified_vae.config.upgrade import upgrade_part
from unified_vae.core import checkpoint_format, retention
from unified_vae.core.errors import CheckpointError, ConfigError
from unified_vae.core.files import ancestor
from unified_vae.core.run_dir import RunFolder
from unified_vae.inference.hub import download
from unified_vae.models.build import build_model
from unified_vae.models.pretrained import CONFIG, WEIGHTS, Pretrained, open_pretrained
from unified_vae.models.vae import VAE

HUB = "hf:"
WEIGHTS_WORDS = {"ema": "averaged", "raw": "raw"}
WeightsName = Literal["ema", "raw"]
"""Averaged over the steps, or those of the last step."""
_STEP = re.compile(r"step-(\d{9,})")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class TrainedModel:
    """A model's folder, and what it holds: weights, latent density, statistics, description."""

    folder: Path
    content: Pretrained


@dataclass(frozen=True)
class Progress:
    """How far a run is, by its newest checkpoint.

    Attributes:
        best_step: of the best weights; None before their selection has started.
        stopped_early: early stopping ended the run.
    """

    step: int
    best_step: int | None
    stopped_early: bool


@dataclass(frozen=True)
class LoadedModel:
    """A model, and what is known of its training.

    Attributes:
        name: for titles, e.g. `runs/x at step 1,234`.
        model: on the CPU, ready to evaluate; the averaged weights unless others were asked for.
        config: as resolved; for a model without its run, what its own file says.
        home: the folder that results go to unless the user names another.
        run_dir: None for a model without its run.
        record: what the run says of itself; None likewise.
        step: of the weights; None where unknown.
        progress: of the run; None where its checkpoints were not read.
        terms: name -> running mean of a distortion term; empty likewise.
        weights: which of the two sets of weights the model has.
        export: the model's folder that it was read from; None for a checkpoint.
    """

    name: str
    model: VAE
    config: RunConfig
    home: Path
    run_dir: Path | None = None
    record: RunRecord | None = None
    step: int | None = None
    progress: Progress | None = None
    terms: Mapping[str, float] = field(default_factory=dict)
    weights: WeightsName = "ema"
    export: TrainedModel | None = None

    @property
    def description(self) -> Mapping[str, Any]:
        """The content of the model's config file, or of a checkpoint what such a file would say of its run."""
        if self.export is not None:
            return self.export.content.description
        run = {"name": self.home.absolute().name, "step": self.step}
        return {"run": run, "background": self.config.data.background, "range": self.config.data.range}


def load_model(
    target: str | Path,
    checkpoint: str | None = None,
    *,
    data: str | None = None,
    weights: WeightsName | None = None,
    require_data: bool = True,
    prefer_export: bool = False,
    on_message: Callable[[str], None] = lambda _: None,
    **hub_options: Any,
) -> LoadedModel:
    """Read what `target` names.

    Args:
        target: the folder of a run, of a checkpoint inside it or of an exported model, or a name on the Hugging Face
            Hub, `owner/name` or `hf:owner/name`. Folders come before names on the hub.
        checkpoint: of a run: a step, `best` or `last`; None takes the best where the run knows one.
        data: the images, for a model without its run.
        weights: None takes the averaged ones of a checkpoint, and of an exported model those it has.
        require_data: false where a model without its run needs neither `data` nor a known loss.
        prefer_export: of a run, read the model that it exported, with its latent density, if there is one.
        on_message: receives a line for each damaged checkpoint that was passed over.
        hub_options: `revision`, `token`, `cache_dir`, `force_download`, `local_files_only` of snapshot_download.

    Raises:
        ConfigError: it is none of these, a model without its run and without `data`, or one that has other weights.
        CheckpointError: the run has no such checkpoint, or the model is damaged or of another version.
        EnvironmentProblem: the hub cannot be reached.
    """
    path, text = Path(target), Path(target).as_posix()
    if text.startswith(HUB) or (_HUB_ID.fullmatch(text) and not path.exists() and not path.parent.exists()):
        path = download(text.removeprefix(HUB), **hub_options)

    if match := _STEP.fullmatch(path.resolve().name):
        if checkpoint is not None:
            raise ConfigError(f"{path} is one checkpoint already: leave --checkpoint out, or name the run's folder")
        return _load_checkpoint(ancestor(path, 2), match[1], weights or "ema", on_message)
    run = RunFolder(path)
    folders = (path, run.model) if prefer_export and checkpoint is None else (path,)
    for folder in folders:
        if (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file():
            return _load_export(folder, checkpoint, data, weights, require_data)
    if run.has_run():
        return _load_checkpoint(path, checkpoint, weights or "ema", on_message)
    if path.is_file():
        raise CheckpointError(
            f"{path} is a file: a model is a folder with {CONFIG} and {WEIGHTS}, and pickles (.pt, .pth, .ckpt) are "
            "never opened. Name the folder of a run or of a model."
        )
    what = "is no run and no model" if path.is_dir() else "is not there"
    hub = f"; for a model on the hub write {HUB}{text}" if text.count("/") == 1 and not path.is_dir() else ""
    raise ConfigError(
        f"{path} {what}: name the folder of a run (runs/NAME), of one of its checkpoints, or of an exported model{hub}"
    )


def _load_checkpoint(
    run_dir: Path, which: str | None, weights: WeightsName, on_message: Callable[[str], None]
) -> LoadedModel:
    """A checkpoint of a run: the best, the last or that of a step."""
    root = RunFolder(run_dir).checkpoints
    newest = retention.newest_good(root, on_message, set_aside=False)
    if newest is None:
        raise CheckpointError(f"{run_dir} has no checkpoint yet: a run saves its first one after its first epoch.")
    try:
        train = newest.entry("train")
        best = train["best_step"]
        progress = Progress(int(train["step"]), None if best is None else int(best), bool(train["stopped_early"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the training state of the checkpoint in {root} cannot be read ({error})") from error

    # Which checkpoint is meant, and what to call it.
    best = progress.best_step
    if which is None:
        which = "last" if best is None else "best"
    if which == "best" and best is None:
        raise CheckpointError(f"the run in {run_dir} has no best weights yet: its warm-ups are not over.")
    if which in ("best", "last"):
        step = best if which == "best" and best is not None else newest.step
        words = " (best and last)" if which == "best" and step == newest.step else f" ({which})"
    else:
        steps = retention.saved_steps(root)
        if not which.isdecimal() or int(which) not in steps:
            have = ", ".join(str(step) for step in steps)
            raise ConfigError(f"--checkpoint {which}: the run in {run_dir} has best, last and the steps {have}")
        step, words = int(which), ""
    saved = newest if step == newest.step else checkpoint_format.load(root, step)

    record = RunRecord.from_json(saved.entry("record"), run_dir)
    model = build_model(record.resolved.model, seed=0)
    checkpoint_format.load_weights(model, saved.tensors("ema" if weights == "ema" else "model"), "model")
    terms = {
        name.removeprefix("mean_"): float(value)
        for name, value in saved.tensors("objective").items()
        if value.numel() == 1 and torch.is_floating_point(value)
    }
    return LoadedModel(
        name=f"{run_dir.as_posix()} at step {saved.step:,}{words}{'' if weights == 'ema' else ', raw weights'}",
        model=model.eval(),
        config=record.resolved,
        home=run_dir,
        run_dir=run_dir,
        record=record,
        step=saved.step,
        progress=progress,
        terms=terms,
        weights=weights,
    )


def _load_export(
    folder: Path, checkpoint: str | None, data: str | None, weights: WeightsName | None, require_data: bool
) -> LoadedModel:
    """An exported model, with the record of its run where it still lies in the run's folder."""
    if checkpoint is not None:
        raise ConfigError(f"{folder} is an exported model, which has one set of weights: leave --checkpoint out")
    content = open_pretrained(folder)
    about = content.description
    run = about.get("run", {})
    has: WeightsName = "raw" if run.get("weights") == "raw" else "ema"
    if weights not in (None, has):
        raise ConfigError(
            f"{folder} is an exported model, which has {WEIGHTS_WORDS[has]} weights alone: name its run for others"
        )

    path = RunFolder(folder.resolve().parent).config
    try:
        record = RunRecord.from_json(json.loads(path.read_text(encoding="utf-8")), path.parent)
    except (OSError, ValueError):
        record = None  # the model lies by itself
    run_dir = None if record is None else ancestor(folder, 1)
    if record is not None:
        config = record.resolved.replace(model=content.config)
    elif data is None and require_data:
        raise ConfigError(f"{folder} is a model without its run: name the images to look at with --data")
    else:
        named = {"source": data, **{name: about.get(name) for name in ("background", "range")}}
        source = upgrade_part("data", {name: value for name, value in named.items() if value is not None})
        config = RunConfig(model=content.config, data=DataConfig(**source))
        try:
            config = config.replace(loss=LossConfig.model_validate(upgrade_part("loss", about["loss"])))
        except (KeyError, ValidationError) as error:
            if require_data:
                raise CheckpointError(
                    f"the model in {folder} was exported by another version of unified-vae: its {CONFIG} says nothing "
                    "of the loss that this one understands. Diagnose it with that version."
                ) from error
    return LoadedModel(
        name=f"{folder.as_posix()}{'' if has == 'ema' else ', raw weights'}",
        model=content.model,
        config=config,
        home=run_dir or folder,
        run_dir=run_dir,
        record=record,
        step=run.get("step"),
        weights=has,
        export=TrainedModel(folder, content),
    )


def trained_model(
    loaded: LoadedModel, on_message: Callable[[str], None] | None = None, consequence: str = ""
) -> TrainedModel | None:
    """The folder that a model was read from, else its run's if every weight there is equal; None without one.

    Args:
        on_message: receives the error about a damaged folder, which is then passed over; None raises it.
        consequence: what follows from that, as a sentence for the message.

    Raises:
        CheckpointError: the folder is damaged.
    """
    if loaded.export is not None or loaded.run_dir is None:
        return loaded.export
    folder = RunFolder(loaded.run_dir).model
    if not (folder / CONFIG).is_file():
        return None
    try:
        content = open_pretrained(folder)
    except CheckpointError as error:
        if on_message is None:
            raise
        on_message(f"{error} {consequence}")
        return None
    a, b = content.model.state_dict(), loaded.model.state_dict()
    is_equal = a.keys() == b.keys() and all(torch.equal(value, b[name].cpu()) for name, value in a.items())
    return TrainedModel(folder, content) if is_equal else None
