"""What the files of a run say, read so that a missing, old or damaged one leaves a gap and not an error. No torch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

from unified_vae.config.loss import LIKELIHOOD_METRICS, is_likelihood
from unified_vae.core.durable import reason
from unified_vae.core.errors import ConfigError
from unified_vae.core.paths import above
from unified_vae.core.printable import printable
from unified_vae.experiment.run_folder import RunFolder

Row = Mapping[str, Any]
_STEP_FOLDER = re.compile(r"step-\d{9}")
_KNOWN = "Name the folder of a run, e.g. runs/fast_high_quality"


@dataclass(frozen=True)
class RunFiles:
    """A run as its folder tells it.

    Attributes:
        folder: where it lies.
        record: the content of config.json.
    """

    folder: RunFolder
    record: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The folder as it was named."""
        return printable(self.folder.root.as_posix())

    def about(self, *names: str) -> Any:
        """An entry of config.json, None where it is not there: `about("config", "training", "epochs")`."""
        return entry(self.record, *names)

    @cached_property
    def metrics(self) -> Sequence[Row]:
        """The rows of metrics.jsonl, without what an earlier version logged as the likelihood of a mix of losses."""
        loss, found = self.about("config", "loss"), rows(self.folder.metrics)
        if isinstance(loss, Mapping) and not is_likelihood(loss):
            found = [{name: value for name, value in row.items() if name not in LIKELIHOOD_METRICS} for row in found]
        return found

    @cached_property
    def training(self) -> Sequence[Row]:
        """Rows of training steps."""
        return [row for row in self.metrics if row.get("split") == "train"]

    @cached_property
    def validations(self) -> Sequence[Row]:
        """Rows of validations."""
        return [row for row in self.metrics if row.get("split") == "validation"]

    @cached_property
    def timing(self) -> Sequence[Row]:
        """The rows of timing.jsonl."""
        return rows(self.folder.timing)

    @cached_property
    def model(self) -> Mapping[str, Any]:
        """The config file of the exported model; empty without one."""
        return read_json(self.folder.model / "config.json")

    @cached_property
    def preflight(self) -> Mapping[str, Any]:
        """What linear theory said; empty where that is not known."""
        found = self.about("preflight")
        return found if isinstance(found, Mapping) and found else read_json(self.folder.preflight)

    @cached_property
    def evaluation(self) -> Mapping[str, Any]:
        """What `evaluate` wrote beside the run; empty where it did not."""
        return read_json(self.folder.evaluation)

    @property
    def last_step(self) -> int:
        """The last step that left a row."""
        return max((int(row["step"]) for row in (*self.metrics, *self.timing)), default=0)

    @property
    def total_steps(self) -> float | None:
        """Steps that were asked for; None where that is not known."""
        epochs, longest = self.about("config", "training", "epochs"), self.about("config", "training", "max_steps")
        a_pass = self.about("steps_per_epoch")
        steps = [epochs * a_pass] if number(epochs) and number(a_pass) else []
        return min([*steps, *([longest] if number(longest) else [])], default=None)

    @cached_property
    def best(self) -> Row:
        """The validation of the exported weights; without a model, the one with the highest PSNR."""
        step = entry(self.model, "run", "step")
        chosen = [row for row in self.validations if row["step"] == step]
        measured = [row for row in self.validations if number(row.get("psnr"))]
        highest = max(measured, key=lambda row: row["psnr"], default=None)
        return chosen[-1] if chosen else highest or (self.validations[-1] if self.validations else {})

    @property
    def is_exported(self) -> bool:
        """Whether the model is that of the last step."""
        return self.last_step > 0 and entry(self.model, "run", "trained_steps") == self.last_step

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to train."""
        return self.is_exported or (self.total_steps is not None and self.last_step >= self.total_steps)

    @property
    def status(self) -> str:
        """How far it came, in words."""
        total, last = self.total_steps, self.last_step
        epochs = f" ({self.epoch:.4g} epochs)" if number(self.epoch) else ""
        if self.is_exported:
            early = total is not None and last < total
            return f"{f'stopped early, of {total:,},' if early else 'finished'} after {last:,} steps{epochs}"
        asked = "" if total is None else f" of {total:,}"
        return f"{'no model exported yet' if self.is_over else 'not finished'}: {last:,}{asked} steps{epochs}"

    @property
    def epoch(self) -> Any:
        """Of the last row."""
        return self.metrics[-1].get("epoch") if self.metrics else None


def find_run(target: Path) -> RunFiles:
    """The run in a folder, or the one that a checkpoint or a model folder lies in.

    Raises:
        ConfigError: there is none, or its config.json cannot be read.
    """
    if not target.is_dir():
        raise ConfigError(f"{target} is {'no folder' if target.exists() else 'not there'}. {_KNOWN}.")
    folder = RunFolder(_root(target))
    try:
        record = json.loads(folder.config.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{target} is no run: it has no config.json. {_KNOWN}.") from None
    except (OSError, ValueError) as problem:
        raise ConfigError(
            f"{folder.config} cannot be read ({reason(problem)}): without it there is no report."
        ) from None
    if not isinstance(entry(record, "config"), Mapping):
        raise ConfigError(f"{target} is no run: its config.json has no settings of one. {_KNOWN}.")
    return RunFiles(folder, record)


def _root(target: Path) -> Path:
    place = target.resolve()
    if _STEP_FOLDER.fullmatch(place.name) and place.parent.name == "checkpoints":
        return above(target, 2)
    if (target / "model.safetensors").is_file() and (place.parent / "config.json").is_file():
        return above(target, 1)
    return target


def rows(path: Path) -> list[Row]:
    """The objects of a file of lines that have a step; lines that are damaged or cut are left out."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found: list[Row] = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and number(row.get("step")):
            found.append(row)
    return found


def read_json(path: Path) -> Mapping[str, Any]:
    """An object from a file; empty where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def entry(content: Any, *names: str) -> Any:
    """An entry of nested objects; None where it is not there."""
    for name in names:
        content = content.get(name) if isinstance(content, Mapping) else None
    return content


def number(value: object) -> TypeGuard[float]:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def leaves(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every value of nested objects by its dotted path."""
    found: dict[str, Any] = {}
    for name, value in content.items():
        path = f"{prefix}.{name}" if prefix else str(name)
        found |= leaves(value, path) if isinstance(value, Mapping) and value else {path: value}
    return found
