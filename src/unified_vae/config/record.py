"""What a run says of itself: its settings, their origins, its data, the machine. No torch here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from unified_vae.config.run import ComposedRun, RunConfig
from unified_vae.config.upgrade import upgrade
from unified_vae.core import __version__
from unified_vae.core.errors import CheckpointError
from unified_vae.core.files import write_text


@dataclass(frozen=True)
class RunRecord:
    """What a run says of itself: in `config.json` for people, and in each checkpoint for its continuation.

    Attributes:
        requested: the config as it was asked for, with `auto` where that was said.
        resolved: the config as it is computed: channels from the data, missing terms replaced.
        origins: dotted path -> where the value came from.
        names: mode and presets.
        substitutions: terms whose pretrained weights could not be had, as (term, replacement, reason).
        data: description and fingerprint of the images.
        steps_per_epoch: optimizer steps that see every training image once.
        environment: versions and machine.
        preflight: what linear theory said before the first step.
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
        """Plain values."""
        return {
            "config": self.resolved.model_dump(mode="json"),
            "requested": self.requested.model_dump(mode="json"),
            "origins": dict(self.origins),
            "names": dict(self.names),
            "substitutions": [list(entry) for entry in self.substitutions],
            "data": dict(self.data),
            "steps_per_epoch": self.steps_per_epoch,
            "environment": dict(self.environment),
            "preflight": dict(self.preflight),
        }

    def write(self, path: Path) -> None:
        """Replace the file in one step."""
        write_text(path, json.dumps(self.to_json(), indent=2) + "\n")

    @classmethod
    def from_json(cls, content: Mapping[str, Any], path: Path) -> RunRecord:
        """The inverse of `to_json`; `path` is where it was read, for messages.

        Raises:
            CheckpointError: it is of a version that this one cannot read.
        """
        try:
            return cls(
                RunConfig.model_validate(upgrade(content["requested"])),
                RunConfig.model_validate(upgrade(content["config"])),
                content["origins"],
                content["names"],
                tuple((term, by, reason) for term, by, reason in content["substitutions"]),
                {**content["data"], **{name: str(content["data"][name]) for name in ("fingerprint", "description")}},
                int(content["steps_per_epoch"]),
                content["environment"],
                content["preflight"],
            )
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            why = str(error).splitlines()[0]
            environment = content.get("environment") if isinstance(content, Mapping) else None
            version = environment.get("unified-vae") if isinstance(environment, Mapping) else None
            writer = f"unified-vae {version}" if isinstance(version, str) else "another version of unified-vae"
            raise CheckpointError(
                f"the run in {path} was begun by {writer}; this is unified-vae {__version__}, "
                f"which does not understand it ({why}). Continue it with that one, or start afresh with --no-resume "
                "(the old run is moved aside, not deleted)."
            ) from error


def leaves(config: RunConfig) -> dict[str, Any]:
    """Every setting by its dotted path."""

    def walk(prefix: str, value: object) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from walk(f"{prefix}.{key}" if prefix else key, inner)
        else:
            yield prefix, value

    return dict(walk("", config.model_dump(mode="json")))


def changed(before: RunConfig, now: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Dotted path -> (before, now) of every setting that differs; absent settings are None."""
    old, new = leaves(before), leaves(now)
    paths = [*old, *(path for path in new if path not in old)]
    return {path: (old.get(path), new.get(path)) for path in paths if old.get(path) != new.get(path)}


def resolved_origins(run: ComposedRun, resolved: RunConfig, why: Mapping[str, str]) -> dict[str, str]:
    """Origins for a resolved config: what resolution changed is named as such.

    Args:
        why: dotted path, or the start of one -> reason.
    """
    origins = dict(run.origins)
    for path in changed(run.config, resolved):
        reasons = [reason for start, reason in why.items() if path == start or path.startswith(f"{start}.")]
        origins[path] = reasons[0] if reasons else "resolved at start"
    return origins
