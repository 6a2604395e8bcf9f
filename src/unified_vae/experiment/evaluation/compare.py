"""The verb `compare`: several models on the same images, in one table, one sheet and one plot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from unified_vae.core.durable import write_text
from unified_vae.core.events import Observer
from unified_vae.experiment.evaluation.comparison_picture import paint_plot, paint_sheet
from unified_vae.experiment.evaluation.entrants import Entrant, Result, gather_entrants, measure_all
from unified_vae.experiment.evaluation.evaluate import FORMAT, PRECISION, described, prove_writable
from unified_vae.experiment.evaluation.figure import Figure
from unified_vae.experiment.evaluation.of_samples import FITTED
from unified_vae.experiment.evaluation.request import CompareRequest
from unified_vae.metrics import bootstrap
from unified_vae.training.distributed import open_runtime

REPORT, SHEET, PLOT = "comparison.json", "comparison.png", "comparison-curves.png"
SIZES_DIFFER = (
    "the models have different image sizes, each measured at its own: pixels of different sizes cannot be set against "
    "one another, so nothing is marked as best"
)

Mark = Literal["best", "level", ""]
"""`level`: not told apart from the best."""


@dataclass(frozen=True)
class Row:
    """A metric of all models.

    Attributes:
        figures: one a model, None where it has no such figure.
        marks: one a model.
    """

    figures: Sequence[Figure | None]
    marks: Sequence[Mark]

    @property
    def first(self) -> Figure:
        """A model's that has it."""
        return next(figure for figure in self.figures if figure is not None)


@dataclass(frozen=True)
class Comparison:
    """What was found, and where it is kept."""

    labels: Sequence[str]
    names: Sequence[str]
    images: str
    rows: Sequence[Row]
    notes: Sequence[str]
    report: Path
    sheet: Path
    plot: Path


def compare(request: CompareRequest, observer: Observer) -> Comparison:
    """Measure all, write the report, the sheet and the plot.

    Raises:
        UserError: there is no such model, they are not on the same images, or the files cannot be written.
    """
    entrants = gather_entrants(request, observer)
    prove_writable(request.output, "--output")
    asked = request.settings.device or entrants[0].subject.config.device
    with open_runtime(asked, PRECISION) as runtime:
        results = completed(measure_all(entrants, request, runtime.device, observer))
    same_size = len({entrant.pictures.size for entrant in entrants}) == 1
    found = Comparison(
        labels=[entrant.label for entrant in entrants],
        names=[entrant.subject.name for entrant in entrants],
        images=entrants[0].pictures.description,
        rows=rows_of([result.figures for result in results], request.settings.seed, same_size),
        notes=[] if same_size else [SIZES_DIFFER],
        report=request.output / REPORT,
        sheet=request.output / SHEET,
        plot=request.output / PLOT,
    )
    write_text(found.report, json.dumps(_content(found, results, request), indent=2) + "\n")
    paint_sheet(found.sheet, results)
    paint_plot(found.plot, results)
    return found


def completed(results: Sequence[Result]) -> list[Result]:
    """The same, with a figure without a value, and why, for each that only others have."""
    known = {figure.name: figure for result in results for figure in reversed(result.figures)}
    found = []
    for result in results:
        own = {figure.name for figure in result.figures}
        lacking = [_lacking(figure, result.entrant) for name, figure in known.items() if name not in own]
        found.append(replace(result, figures=[*result.figures, *lacking]))
    return found


def _lacking(figure: Figure, entrant: Entrant) -> Figure:
    why = f"{entrant.label} has no such figure"
    if figure.name.endswith(f".{FITTED}"):
        why = (
            f"{entrant.label} draws new pictures from N(0, I) alone: no other latent density was fitted to these "
            "weights, or none was likelier"
        )
    empty = Figure(figure.name, figure.title, figure.group, figure.unit, figure.better, figure.evaluator)
    return empty.unavailable(why)


def rows_of(models: Sequence[Sequence[Figure]], seed: int, marked: bool = True) -> list[Row]:
    """A row for each name that any model has, in the order of the first that has it."""
    tables: list[Mapping[str, Figure]] = [{figure.name: figure for figure in figures} for figures in models]
    names = dict.fromkeys(name for table in tables for name in table)
    rows = []
    for name in names:
        figures = [table.get(name) for table in tables]
        rows.append(Row(figures, _marks(figures, seed) if marked else [""] * len(figures)))
    return rows


def _marks(figures: Sequence[Figure | None], seed: int) -> list[Mark]:
    """The best value, and those that are not told apart from it."""
    known = [figure for figure in figures if figure is not None and figure.ranks()]
    if len(known) < 2:
        return [""] * len(figures)
    best = min(known, key=_rank)
    return [_mark(figure, best, seed) for figure in figures]


def _mark(figure: Figure | None, best: Figure, seed: int) -> Mark:
    if figure is None or not figure.ranks():
        return ""
    if figure.value == best.value:
        return "best"
    return "level" if is_level(figure, best, seed) else ""


def _rank(figure: Figure) -> float:
    """Smaller is better."""
    assert figure.value is not None
    return {"higher": -figure.value, "lower": figure.value, "near 1": abs(figure.value - 1)}[figure.better]


def is_level(one: Figure, other: Figure, seed: int) -> bool:
    """Whether two values are not told apart: their difference on resamples of the same images may be of either sign.

    Where a figure is no mean over images, whether the two intervals overlap.
    """
    if one.per_image is not None and other.per_image is not None:
        mine, theirs = one.per_image, other.per_image
        drawn = bootstrap.resamples(len(mine.values), seed, f"difference of {one.name}")
        differences = [
            _difference(one, mine.statistic(mine.values[rows].mean(0)), theirs.statistic(theirs.values[rows].mean(0)))
            for rows in drawn
        ]
        limits = bootstrap.percentiles(differences)
        return limits.low <= 0 <= limits.high
    if one.interval is None or other.interval is None:
        return False
    return one.interval.low <= other.interval.high and other.interval.low <= one.interval.high


def _difference(figure: Figure, mine: float, theirs: float) -> float:
    return abs(mine - 1) - abs(theirs - 1) if figure.better == "near 1" else mine - theirs


def _content(found: Comparison, results: Sequence[Result], request: CompareRequest) -> dict[str, object]:
    models = [
        {
            "label": result.entrant.label,
            "weights": result.entrant.subject.weights,
            **described(result.entrant.subject, result.entrant.pictures, request.settings),
            "figures": [figure.to_json() for figure in result.figures],
        }
        for result in results
    ]
    marks = {row.first.name: dict(zip(found.labels, row.marks, strict=True)) for row in found.rows}
    return {"format": FORMAT, "notes": list(found.notes), "marks": marks, "models": models}
