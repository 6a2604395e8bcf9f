"""What `evaluate` wrote beside runs, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from unified_vae.experiment.report.figures import plain
from unified_vae.experiment.report.html import Html
from unified_vae.experiment.report.run_files import RunFiles, leaves
from unified_vae.experiment.report.tables import section, table


def evaluation(runs: Sequence[tuple[str, RunFiles]]) -> Html | None:
    """Every entry of the files, a column a run; None without any."""
    found: list[dict[str, Any]] = [leaves(run.evaluation) for _, run in runs]
    names = dict.fromkeys(name for entries in found for name in entries)
    rows = [(name, *(plain(entries[name]) if name in entries else "—" for entries in found)) for name in names]
    head = ("figure", *(["value"] if len(runs) == 1 else [label for label, _ in runs]))
    return section("evaluation", "Evaluation", table("What evaluate measured", head, rows))
