"""The diagnosis that a page shows: the fullest and newest that there is, else what the metrics alone tell."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unified_vae.core.shell import uv_run
from unified_vae.experiment.diagnosis.cause import Diagnosis
from unified_vae.experiment.diagnosis.history import History
from unified_vae.experiment.diagnosis.pca_line import PCALine
from unified_vae.experiment.diagnosis.remedy import Remedy
from unified_vae.experiment.report.figures import latents
from unified_vae.experiment.report.run_files import RunFiles, number, read_json


@dataclass(frozen=True)
class Finding:
    """A diagnosis as it was kept.

    Attributes:
        cause: one of diagnosis.CAUSES, or `healthy`.
        advice: what to do, in a sentence; empty where that is not known.
        command: the one to run next; empty likewise.
        evidence: (cause, whether it applies, figures).
        source: where it was found, or by whom.
        picture: of `diagnose`; None without one.
    """

    cause: str
    advice: str
    command: str
    evidence: list[tuple[str, bool | None, str]]
    source: str
    picture: Path | None = None


def content(found: Diagnosis, cure: Remedy, step: int) -> dict[str, Any]:
    """What is kept of a diagnosis at the end of a run."""
    rows = [asdict(row) for row in found.evidence()]
    return {"step": step, "cause": found.cause, "advice": cure.advice, "command": cure.command, "evidence": rows}


def finding(run: RunFiles) -> Finding | None:
    """The newer one of those that `diagnose` and the end of the run left; else from the metrics; None without any."""
    for path in sorted((run.folder.diagnosis, run.folder.closing), key=_age):
        if (found := _read(path, run)) is not None:
            return found
    return _from_metrics(run)


def _age(path: Path) -> float:
    """Seconds that order files from new to old; absent ones come last."""
    return -path.stat().st_mtime if path.is_file() else math.inf


def _read(path: Path, run: RunFiles) -> Finding | None:
    kept = read_json(path)
    try:
        evidence = [(str(row["cause"]), row["applies"], str(row["figures"])) for row in kept["evidence"]]
        cause, advice, command = (str(kept[name]) for name in ("cause", "advice", "command"))
    except (KeyError, TypeError):
        return None
    picture, step = run.folder.diagnosis_picture, kept.get("step")
    if path == run.folder.closing:
        if step != run.last_step:  # the run went on after that end
            return None
        return Finding(cause, advice, command, evidence, "at the end of the run")
    source = (
        f"by unified-vae diagnose, from the weights of step {step:,}" if number(step) else "by unified-vae diagnose"
    )
    return Finding(cause, advice, command, evidence, source, picture if picture.is_file() else None)


def _from_metrics(run: RunFiles) -> Finding | None:
    try:
        history = History.read(run.folder.metrics)
        found = Diagnosis.of(
            history.last,
            latents(run) or round(history.last["active_units"]),
            beta=history.beta,
            sigma=history.sigma,
            history=history,
            line=_line(run.preflight),
        )
        evidence = [(row.cause, row.applies, row.figures) for row in found.evidence()]
    except (KeyError, TypeError, ValueError, ArithmeticError):  # rows of an old run, or none
        return None
    command = uv_run("unified-vae", "diagnose", run.folder.root.as_posix())
    return Finding(
        found.cause, "The metrics alone say so; this looks at images too", command, evidence, "in the metrics alone"
    )


def _line(preflight: Mapping[str, Any]) -> PCALine | None:
    try:
        return PCALine.from_json(preflight)
    except (KeyError, TypeError, ValueError):
        return None
