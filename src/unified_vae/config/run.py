"""The settings of a whole run: validated, composed with the origin of each value, and recorded. No torch here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from unified_vae.config.base import Config
from unified_vae.config.data import DataConfig
from unified_vae.config.loss import LossConfig
from unified_vae.config.model import ConvConfig, DensityConfig, ModelConfig
from unified_vae.config.training import TrainingConfig
from unified_vae.config.upgrade import upgrade
from unified_vae.core import __version__
from unified_vae.core.errors import CheckpointError
from unified_vae.core.files import write_text

PLAIN_ENTRIES = ("origins", "names", "substitutions", "data", "steps_per_epoch", "environment", "preflight")
"""Fields of a record that JSON holds as they are."""


class RunConfig(Config):
    """Everything that decides what a run computes. `--set path=value` reaches every field below."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """Decides the first weights, the order of images, augmentation and noise."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    """auto, cpu, cuda, cuda:N or mps."""
    preflight: Literal["warn", "strict"] = "warn"
    """Where linear theory predicts posterior collapse before the first step: `warn`, or be `strict` and stop."""
    license: str = Field(default="unknown", pattern=r"^[A-Za-z0-9][A-Za-z0-9.+-]*$")
    """License of the model, for its card: an identifier of the Hugging Face Hub, such as cc-by-4.0 or apache-2.0."""
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()
    model: ModelConfig = ConvConfig()
    data: DataConfig = DataConfig()
    density: DensityConfig = DensityConfig()


@dataclass(frozen=True)
class ComposedRun:
    """A validated config and where each value came from.

    Attributes:
        config: the run.
        origins: dotted path of every setting -> where its value came from, e.g. `default`, `--beta` or
            `loss preset mse_l1 (config/config_unified.json)`.
        names: what was composed: mode, loss, training, model, dataset and augment preset, where given.
        notes: lines the user should read.
    """

    config: RunConfig
    origins: Mapping[str, str]
    names: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class RunRecord:
    """How a run was set up: in `config.json` for people, and in each checkpoint for its continuation.

    Attributes:
        requested: the config as it was asked for, with `auto` where that was said.
        resolved: the config as it is computed: channels from the data, missing terms replaced.
        origins: dotted path -> where the value came from.
        names: mode and presets.
        substitutions: terms whose pretrained weights could not be had, as (term, replacement, reason).
        data: description and fingerprint of the images.
        steps_per_epoch: optimizer steps that see every training image once.
        environment: versions and machine.
        preflight: what linear theory predicted before the first step.
    """

    requested: RunConfig
    resolved: RunConfig
    origins: Mapping[str, str]
    names: Mapping[str, str]
    substitutions: tuple[tuple[str, str, str], ...]
    data: Mapping[str, Any]
    steps_per_epoch: int
    environment: Mapping[str, str]
    preflight: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "config": self.resolved.model_dump(mode="json"),
            "requested": self.requested.model_dump(mode="json"),
            **{name: getattr(self, name) for name in PLAIN_ENTRIES},
        }

    def write(self, path: Path) -> None:
        """Replace the file in one step."""
        write_text(path, json.dumps(self.to_json(), indent=2) + "\n")

    @classmethod
    def from_json(cls, content: Mapping[str, Any], path: Path) -> RunRecord:
        """Read what `to_json` wrote; `path` is where it was read, for messages.

        Raises:
            CheckpointError: it is of a version that this one cannot read.
        """
        try:
            resolved = upgrade(content["config"])
            resolved["data"].setdefault("split_by", "bytes")  # as all runs were split that say nothing
            return cls(
                RunConfig.model_validate(upgrade(content["requested"])),
                RunConfig.model_validate(resolved),
                content["origins"],
                content["names"],
                tuple((term, by, reason) for term, by, reason in content["substitutions"]),
                {**content["data"], **{name: str(content["data"][name]) for name in ("fingerprint", "description")}},
                int(content["steps_per_epoch"]),
                content["environment"],
                content["preflight"],
            )
        except (ValueError, KeyError, TypeError) as error:  # pydantic's are ValueErrors
            why = str(error).splitlines()[0]
            environment = content.get("environment") if isinstance(content, Mapping) else None
            version = environment.get("unified-vae") if isinstance(environment, Mapping) else None
            writer = f"unified-vae {version}" if isinstance(version, str) else "another version of unified-vae"
            raise CheckpointError(
                f"the run in {path} was begun by {writer}; this is unified-vae {__version__}, "
                f"which does not understand it ({why}). Continue it with that one, or start afresh with --no-resume "
                "(the old run is moved aside, not deleted)."
            ) from error


def changed(before: RunConfig, now: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Return dotted path -> (before, now) of every setting that differs; absent settings are None."""
    old, new = before.by_path(), now.by_path()
    paths = [*old, *(path for path in new if path not in old)]
    return {path: (old.get(path), new.get(path)) for path in paths if old.get(path) != new.get(path)}


def resolved_origins(run: ComposedRun, resolved: RunConfig, why: Mapping[str, str]) -> dict[str, str]:
    """Return origins for a resolved config: what resolution changed is named as such.

    Args:
        why: dotted path, or the start of one -> reason.
    """
    origins = dict(run.origins)
    for path in changed(run.config, resolved):
        reasons = [reason for start, reason in why.items() if path == start or path.startswith(f"{start}.")]
        origins[path] = reasons[0] if reasons else "resolved at start"
    return origins
