"""The folder of a run: where everything lies, and what it says about itself. No torch here."""

from __future__ import annotations

import datetime
import errno
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from unified_vae.config.run import ComposedRun, RunConfig
from unified_vae.config.upgrade import upgrade
from unified_vae.core.durable import probe, reason, sweep_stages, write_text
from unified_vae.core.errors import CheckpointError, EnvironmentProblem
from unified_vae.core.paths import sibling
from unified_vae.core.version import __version__


@dataclass(frozen=True)
class RunFolder:
    """Paths inside `runs/NAME/`."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved config with the origin of each value."""
        return self.root / "config.json"

    @property
    def checkpoints(self) -> Path:
        """`step-...` folders."""
        return self.root / "checkpoints"

    @property
    def samples(self) -> Path:
        """Sheets of pictures."""
        return self.root / "samples"

    @property
    def tensorboard(self) -> Path:
        """Event files."""
        return self.root / "tensorboard"

    @property
    def metrics(self) -> Path:
        """One JSON object a line, deterministic."""
        return self.root / "metrics.jsonl"

    @property
    def skipped(self) -> Path:
        """Steps that were skipped because a number was not finite, one JSON object a line."""
        return self.root / "skipped.jsonl"

    @property
    def timing(self) -> Path:
        """Speed and memory, one JSON object a line."""
        return self.root / "timing.jsonl"

    @property
    def quarantine(self) -> Path:
        """Files that could not be used, each with its reason."""
        return self.root / "quarantine.txt"

    @property
    def before(self) -> Path:
        """What `resume_fix` found before it began."""
        return self.root / "before.json"

    @property
    def preflight(self) -> Path:
        """What linear theory said before the first step."""
        return self.root / "preflight.json"

    @property
    def diagnosis(self) -> Path:
        """What `diagnose.py` found."""
        return self.root / "diagnosis.json"

    @property
    def diagnosis_picture(self) -> Path:
        """The same as a picture."""
        return self.root / "diagnosis.png"

    @property
    def evaluation(self) -> Path:
        """What `unified-vae evaluate` measured."""
        return self.root / "evaluation.json"

    @property
    def closing(self) -> Path:
        """What the end of the run found, for its report."""
        return self.root / "closing.json"

    @property
    def report(self) -> Path:
        """The run on one page."""
        return self.root / "report.html"

    @property
    def model(self) -> Path:
        """The exported model."""
        return self.root / "model"

    def has_run(self) -> bool:
        """Whether a run was begun here."""
        return self.config.exists() or self.checkpoints.is_dir()

    def refuse_unwritable(self) -> None:
        """Tell at once what `prepare` would find after torch was loaded: a folder that cannot be made or written.

        Raises:
            EnvironmentProblem: it cannot.
        """
        place = next(path for path in (self.root, *self.root.absolute().parents) if os.path.lexists(path))
        effective = os.access in os.supports_effective_ids
        if place.is_dir() and not os.access(place, os.W_OK | os.X_OK, effective_ids=effective):
            raise _unwritable(place, os.strerror(errno.EACCES))

    def prepare(self) -> None:
        """Make the folder, and prove that all of it can be written before any work is done.

        Raises:
            EnvironmentProblem: it cannot; the sentence names the folder, and says what to do.
        """
        place = self.root
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            for place in (self.root, self.checkpoints, self.samples, self.tensorboard, self.model):
                if place.is_dir() or place.is_symlink():
                    probe(place)
        except OSError as problem:
            raise _unwritable(place, reason(problem)) from problem

    def sweep(self) -> None:
        """Clear the half-written files that a killed run left; the checkpoints have a sweep of their own."""
        for place in (self.root, self.model, self.samples, self.tensorboard):
            sweep_stages(place)

    def move_aside(self) -> Path:
        """Give an earlier run's folder another name, so that a fresh one can begin; returns the new path."""
        stamp = datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
        endings = (f"-before-{stamp}{again}" for again in ("", *(f"-{n}" for n in range(2, 1000))))
        target = next(path for ending in endings if not (path := sibling(self.root, after=ending)).exists())
        try:
            return self.root.rename(target)
        except OSError as problem:
            raise EnvironmentProblem(
                f"the earlier run in {self.root} cannot be moved aside to {target.name} ({problem.strerror}). "
                "Close what uses it, or give another --run-dir."
            ) from problem


def _unwritable(place: Path, why: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"the run folder {place} cannot be written ({why}). "
        "Give another with --run-dir, free space, or fix its permissions."
    )


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
    def from_json(cls, content: Mapping[str, Any], place: Path) -> RunRecord:
        """The inverse of `to_json`; `place` is where it was read, for messages.

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
        except (ValueError, KeyError, TypeError, ValidationError) as problem:
            why = str(problem).splitlines()[0]
            raise CheckpointError(
                f"the run in {place} was begun by {_writer(content)}; this is unified-vae {__version__}, "
                f"which does not understand it ({why}). Continue it with that one, or start afresh with --no-resume "
                "(the old run is moved aside, not deleted)."
            ) from problem


def _writer(content: object) -> str:
    """The version that wrote a record, as far as the record tells."""
    environment = content.get("environment") if isinstance(content, Mapping) else None
    name = environment.get("unified-vae") if isinstance(environment, Mapping) else None
    return f"unified-vae {name}" if isinstance(name, str) else "another version of unified-vae"


def leaves(config: RunConfig) -> dict[str, Any]:
    """Every setting by its dotted path."""
    return dict(_leaves("", config.model_dump(mode="json")))


def _leaves(prefix: str, value: object) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(f"{prefix}.{key}" if prefix else key, inner)
    else:
        yield prefix, value


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
