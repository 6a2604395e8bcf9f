"""What a door hands to the verbs: a composed run, and what to do about an earlier one. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unified_vae.config.run import ComposedRun


@dataclass(frozen=True)
class RunRequest:
    """One start of a run.

    Attributes:
        run: what to compute.
        run_dir: the run's folder.
        resume: continue what is in `run_dir`; otherwise move it aside and start afresh.
        command: the command line that starts this run again, for messages.
        fix_from: for `resume_fix`, the folder of the run to be cured; None for every other mode.
    """

    run: ComposedRun
    run_dir: Path
    resume: bool
    command: str
    fix_from: Path | None = None
