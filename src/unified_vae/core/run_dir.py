"""The folder of a run: the paths of its files, and whether it can be written. No torch here."""

from __future__ import annotations

import datetime
import errno
import os
from pathlib import Path

from unified_vae.core.errors import EnvironmentProblem, reason
from unified_vae.core.files import probe, sweep_stages, with_affixes


class RunFolder:
    """Paths inside `runs/NAME/`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "config.json"  # the resolved config with the origin of each value
        self.checkpoints = root / "checkpoints"  # `step-...` folders
        self.samples = root / "samples"  # grids of sample images
        self.tensorboard = root / "tensorboard"  # event files
        self.metrics = root / "metrics.jsonl"  # one JSON object a line, deterministic
        self.timing = root / "timing.jsonl"  # speed and memory, one JSON object a line
        self.skipped = root / "skipped.jsonl"  # steps skipped because of NaN/Inf, one JSON object a line
        self.quarantine = root / "quarantine.txt"  # files that could not be used, each with its reason
        self.before = root / "before.json"  # the diagnosis that `resume_fix` began with
        self.preflight = root / "preflight.json"  # what linear theory predicted before the first step
        self.diagnosis = root / "diagnosis.json"  # of `diagnose.py`, with the next as its picture
        self.diagnosis_picture = root / "diagnosis.png"
        self.evaluation = root / "evaluation.json"  # metrics of `unified-vae evaluate`
        self.closing = root / "closing.json"  # the diagnosis at the end of the run, for its report
        self.report = root / "report.html"  # the run on one page
        self.model = root / "model"  # the exported model

    def has_run(self) -> bool:
        """Return whether a run was begun here."""
        return self.config.exists() or self.checkpoints.is_dir()

    def refuse_unwritable(self) -> None:
        """Report before torch is loaded what `prepare` would report after: a folder that cannot be made or written.

        Raises:
            EnvironmentProblem: it cannot.
        """
        existing = next(path for path in (self.root, *self.root.absolute().parents) if os.path.lexists(path))
        effective = os.access in os.supports_effective_ids
        if existing.is_dir() and not os.access(existing, os.W_OK | os.X_OK, effective_ids=effective):
            raise _unwritable(existing, os.strerror(errno.EACCES))

    def prepare(self) -> None:
        """Make the folder, and prove that all of it can be written before any work is done.

        Raises:
            EnvironmentProblem: it cannot; the sentence names the folder, and says what to do.
        """
        folder = self.root
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            for folder in (self.root, self.checkpoints, self.samples, self.tensorboard, self.model):
                if folder.is_dir() or folder.is_symlink():
                    probe(folder)
        except OSError as problem:
            raise _unwritable(folder, reason(problem)) from problem

    def sweep(self) -> None:
        """Clear the half-written files that a killed run left; the checkpoints have a sweep of their own."""
        for folder in (self.root, self.model, self.samples, self.tensorboard):
            sweep_stages(folder)

    def move_aside(self) -> Path:
        """Give an earlier run's folder another name, so that a fresh one can begin; returns the new path."""
        stamp = datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
        target = with_affixes(self.root, after=f"-before-{stamp}")
        for n in range(2, 1000):
            if not target.exists():
                break
            target = with_affixes(self.root, after=f"-before-{stamp}-{n}")
        try:
            return self.root.rename(target)
        except OSError as problem:
            raise EnvironmentProblem(
                f"the earlier run in {self.root} cannot be moved aside to {target.name} ({problem.strerror}). "
                "Close what uses it, or give another --run-dir."
            ) from problem


def _unwritable(folder: Path, why: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"the run folder {folder} cannot be written ({why}). "
        "Give another with --run-dir, free space, or fix its permissions."
    )
