"""The page that compares several runs."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase

from unified_vae.experiment.report import curves, evaluations, settings
from unified_vae.experiment.report.figures import Time, figures
from unified_vae.experiment.report.findings import finding
from unified_vae.experiment.report.html import Html, tag
from unified_vae.experiment.report.page import page
from unified_vae.experiment.report.pictures import ROOM, Sheet, sheets, shown
from unified_vae.experiment.report.run_files import RunFiles
from unified_vae.experiment.report.tables import section, table

MOST = len(ascii_uppercase)
SHEETS = 2  # of each run: reconstructions and samples
CONTENTS = (
    ("runs", "Runs"),
    ("figures", "Figures"),
    ("curves", "Curves"),
    ("settings", "Settings that differ"),
    ("evaluation", "Evaluation"),
    ("pictures", "Pictures"),
)
Labelled = Sequence[tuple[str, RunFiles]]


def of_several(runs: Sequence[RunFiles]) -> str:
    """The file's content; each run has a letter, which names its column and its line."""
    labelled = list(zip(ascii_uppercase, runs, strict=False))
    parts = [
        _runs(labelled),
        _figures(labelled),
        section("curves", "Curves", tag("div", curves.of_several(labelled), class_="charts")),
        settings.differing(labelled),
        evaluations.of_several(labelled),
        _pictures(labelled),
    ]
    return page(f"{len(runs)} runs compared", "Averaged weights, validation images.", parts, CONTENTS)


def _runs(labelled: Labelled) -> Html | None:
    rows = [(label, run.name, run.status, _cause(run)) for label, run in labelled]
    sources = {str(run.about("data", "fingerprint")) for _, run in labelled}
    other = "Not all of these runs saw the same images: their figures are not of one validation set."
    return section(
        "runs",
        "Runs",
        table("Runs", ("", "run", "how far", "diagnosis"), rows, "stacked"),
        tag("p", tag("strong", other), class_="note") if len(sources) > 1 else None,
    )


def _cause(run: RunFiles) -> str:
    found = finding(run)
    return "unknown" if found is None else found.cause


def _figures(labelled: Labelled) -> Html | None:
    columns = [{each.name: each for each in figures(run, Time.of(run))} for _, run in labelled]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [(name, *(column[name].text if name in column else "—" for column in columns)) for name in names]
    head = ("figure", *(label for label, _ in labelled))
    return section("figures", "Figures", table("Figures side by side", head, rows, "numbers"))


def _pictures(labelled: Labelled) -> Html | None:
    chosen = [Sheet(sheet.path, f"{label}: {sheet.words}") for label, run in labelled for sheet in sheets(run)[:SHEETS]]
    chosen.sort(key=lambda sheet: sheet.words.partition(": ")[2].startswith("New"))  # like beside like
    room = ROOM // max(1, len(chosen))
    pictures = tag("div", [shown(sheet, room) for sheet in chosen], class_="sheets")
    return section("pictures", "Pictures", pictures if chosen else None)
