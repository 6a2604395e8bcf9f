"""What an earlier run hands on: to a run that fixes it, or to one that repeats it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from unified_vae.config.explain import Settings
from unified_vae.config.presets import read_record
from unified_vae.core.errors import ConfigError
from unified_vae.core.paths import is_file, shown, sibling

RECORD = "config.json"
WEIGHTS = "model.safetensors"  # of an exported model, whose config.json is none of a run

HANDED_ON = (
    "seed",
    "device",
    "data",
    "model",
    "density",
    "training.batch_size",
    "training.gradient_accumulation_steps",
    "training.precision",
    "loss.perceptual.weights_path",
    "loss.lpips.weights_path",
)
"""What a fixing run takes over: data, split, model, density, what fitted in memory, where files are."""


@dataclass(frozen=True)
class EarlierRun:
    """A run's folder, read.

    Attributes:
        settings: every setting of that run, with the line of its record as origin.
        names: the presets that it was composed of.
    """

    run_dir: Path
    settings: Settings
    names: Mapping[str, str]

    def handed_on(self) -> Settings:
        """The part of its settings that a run which fixes it starts from."""
        return self.settings.only(HANDED_ON)


def read_earlier_run(run_dir: Path) -> EarlierRun:
    """Read the record of the run in `run_dir`.

    Raises:
        ConfigError: there is no run, or its record is damaged.
    """
    refuse_model(run_dir)
    record = run_dir / RECORD
    if not is_file(record):
        raise ConfigError(
            f"there is no run to fix in {shown(str(run_dir))}: name its folder with --run-dir, "
            "or train one first with --mode fast_high_quality"
        )
    file = read_record(record)
    return EarlierRun(run_dir, file.settings, file.names or {})


def refuse_model(run_dir: Path) -> None:
    """Raise ConfigError where the folder named as a run's is that of an exported model."""
    if not is_file(run_dir / WEIGHTS):
        return
    above = Path(os.path.normpath(run_dir / os.pardir)) if run_dir.name else run_dir.resolve().parent
    is_of_run = is_file(above / RECORD) and (above / "checkpoints").is_dir()
    way = f"name its run, {shown(str(above))}" if is_of_run else "name the folder of a run, which has checkpoints"
    raise ConfigError(f"{shown(str(run_dir))} is the folder of a model, not of a run: {way}, with --run-dir")


def beside(run_dir: Path, suffix: str) -> Path:
    """The folder beside `run_dir` with `suffix` at the end of its name."""
    folder = run_dir if run_dir.name else run_dir.resolve()
    return sibling(folder, after=suffix)
