"""The settings of a run with their origins, and those in which several runs differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unified_vae.experiment.report.figures import plain
from unified_vae.experiment.report.html import Html, tag
from unified_vae.experiment.report.run_files import RunFiles, leaves
from unified_vae.experiment.report.tables import dotted, folded, section, table

DEFAULT = "default"


def of_one(run: RunFiles) -> Html | None:
    """What was chosen, then the rest."""
    origins = _origins(run)
    rows = [(dotted(name), plain(value), origins.get(name, "not recorded")) for name, value in _settings(run).items()]
    chosen = [row for row in rows if row[2] != DEFAULT]
    usual = [row[:2] for row in rows if row[2] == DEFAULT]
    names = ", ".join(f"{kind} {plain(name)}" for kind, name in (_mapping(run.about("names"))).items())
    return section(
        "settings",
        "Settings",
        tag("p", f"From {names}." if names else "No preset was recorded."),
        table("Settings that are not defaults, with their origins", ("setting", "value", "origin"), chosen, "stacked"),
        folded(f"{len(usual)} settings at their defaults", table("Defaults", ("setting", "value"), usual, "stacked"))
        if usual
        else None,
    )


def differing(runs: Sequence[tuple[str, RunFiles]]) -> Html | None:
    """A table of the settings that are not the same in all runs."""
    all_settings = [(label, _settings(run)) for label, run in runs]
    names = dict.fromkeys(name for _, settings in all_settings for name in settings)
    told = {name: [_told(settings, name) for _, settings in all_settings] for name in names}
    rows = [(dotted(name), *texts) for name, texts in told.items() if len(set(texts)) > 1]
    head = ("setting", *(label for label, _ in runs))
    found = table("Settings that differ", head, rows)
    return section("settings", "Settings that differ", found or tag("p", "All settings are the same."))


def _told(settings: Mapping[str, Any], name: str) -> str:
    return plain(settings[name]) if name in settings else "—"


def _settings(run: RunFiles) -> dict[str, Any]:
    return leaves(run.about("config"))


def _origins(run: RunFiles) -> Mapping[str, str]:
    return {name: plain(origin) for name, origin in _mapping(run.about("origins")).items()}


def _mapping(found: object) -> Mapping[str, Any]:
    return found if isinstance(found, Mapping) else {}
