"""What `evaluate` wrote beside runs: each figure with its interval, and who measured it on what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unified_vae.experiment.report.figures import plain
from unified_vae.experiment.report.html import Html, tag
from unified_vae.experiment.report.run_files import RunFiles, entry, number
from unified_vae.experiment.report.tables import folded, section, table
from unified_vae.experiment.report.ticks import sentence

HEAD = ("figure", "value", "95 % interval", "better", "measured by")
AVERAGED = "ema"
NAMES = {AVERAGED: "averaged weights", "raw": "weights as stepped"}


def of_one(run: RunFiles) -> Html | None:
    """All figures, those that could not be had among them; None where the run was not evaluated."""
    about = [run.evaluation.get("subject"), entry(run.evaluation, "images", "description")]
    words = ", on ".join(plain(told) for told in about if isinstance(told, str))
    parts = [part for weights, found in _figures(run).items() for part in _of_weights(weights, found)]
    return section("evaluation", "Evaluation", tag("p", sentence(words)) if words and parts else None, *parts)


def _of_weights(weights: str, found: Sequence[Mapping[str, Any]]) -> list[Html | None]:
    """A heading, what was measured, and what was not."""
    name = NAMES.get(weights, weights)
    missing = [(_title(each), plain(each["missing"])) for each in found if each.get("missing")]
    there = [_row(each) for each in found if not each.get("missing")]
    why = table(f"Not measured of the {name}", ("figure", "why"), missing, "stacked")
    return [
        tag("h3", sentence(name).rstrip(".")),
        table(f"Evaluation of the {name}", HEAD, there, "lines"),
        folded(f"Not measured: {len(missing)}", why) if missing else None,
    ]


def of_several(runs: Sequence[tuple[str, RunFiles]]) -> Html | None:
    """The values of the averaged weights side by side; None where no run was evaluated."""
    columns = [{_title(each): _value(each) for each in _figures(run).get(AVERAGED, [])} for _, run in runs]
    titles = dict.fromkeys(title for column in columns for title in column)
    rows = [(title, *(column.get(title, "—") for column in columns)) for title in titles]
    head = ("figure", *(label for label, _ in runs))
    return section("evaluation", "Evaluation", table("Evaluation side by side", head, rows, "numbers"))


def _figures(run: RunFiles) -> dict[str, list[Mapping[str, Any]]]:
    """Weights -> their figures."""
    found = run.evaluation.get("weights")
    every = found.items() if isinstance(found, Mapping) else ()
    return {
        str(name): [each for each in rows if isinstance(each, Mapping)]
        for name, rows in every
        if isinstance(rows, list)
    }


def _title(each: Mapping[str, Any]) -> str:
    return plain(each.get("title") or each.get("name"))


def _value(each: Mapping[str, Any]) -> str:
    value, unit = each.get("value"), each.get("unit")
    return f"{value:,.5g} {unit or ''}".rstrip() if number(value) else "—"


def _row(each: Mapping[str, Any]) -> tuple[str, ...]:
    limits = each.get("interval_95")
    known = isinstance(limits, list) and len(limits) == 2 and all(map(number, limits))
    interval = f"{limits[0]:,.5g} to {limits[1]:,.5g}" if known and limits else ""
    return _title(each), _value(each), interval, plain(each.get("better") or ""), _how(each)


def _how(each: Mapping[str, Any]) -> str:
    """Evaluator, resolution and count."""
    count = each.get("images")
    images = f"{count:,} images" if number(count) and count else ""
    told = [plain(each.get(name) or "") for name in ("evaluator", "resolution")]
    return ", ".join(part for part in (*told, images, plain(each.get("note") or "")) if part)
