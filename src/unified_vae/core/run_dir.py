"""The folder of a run: where everything lies. No torch here."""

from __future__ import annotations

import datetime
import errno
import os
from dataclasses import dataclass
from pathlib import Path

from unified_vae.core.errors import EnvironmentProblem, reason
from unified_vae.core.files import probe, sweep_stages, with_affixes


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
        """Grids of sample images."""
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
        target = next(path for ending in endings if not (path := with_affixes(self.root, after=ending)).exists())
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
