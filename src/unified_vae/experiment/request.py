"""What a door hands to the verbs: a composed run, and what to do about an earlier one. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from unified_vae.experiment.run_config import RunConfig


@dataclass(frozen=True)
class ComposedRun:
    """A validated config and where each value came from.

    Attributes:
        config: the run.
        origins: dotted path of every leaf -> its origin in words, e.g. `default`,
            `loss preset mse_l1 (config/config_unified.json:12)`, `--beta`, `--set`.
        names: what was composed: mode, loss, training, model, dataset and augment preset, where given.
    """

    config: RunConfig
    origins: Mapping[str, str]
    names: Mapping[str, str] = field(default_factory=dict)


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
