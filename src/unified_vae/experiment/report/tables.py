"""Tables of a page. Each stands in a box that scrolls sideways, so that the page itself never does."""

from __future__ import annotations

from collections.abc import Sequence

from unified_vae.experiment.report.html import Child, Html, joined, tag


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[Child]], kind: str = "") -> Html | None:
    """Rows whose first cell is their name; None without rows.

    Args:
        caption: what the table has; read aloud, and not shown.
        head: names of the columns.
        kind: a class of the style sheet: `stacked` sets the cells of a row below one another on a phone, `lines` keeps
            each in one line, `numbers` sets all but the first column to the right.
    """
    if not rows:
        return None
    columns = tag("tr", [tag("th", name, scope="col") for name in head])
    body = [tag("tr", tag("th", first, scope="row"), [tag("td", cell) for cell in rest]) for first, *rest in rows]
    whole = tag("table", tag("caption", caption), tag("thead", columns), tag("tbody", body), class_=kind or None)
    return tag("div", whole, class_="wide", role="region", aria_label=caption, tabindex=0)


def dotted(name: str) -> list[Html]:
    """The path of a setting, which may be broken after a dot and nowhere else."""
    first, *rest = name.split(".")
    return [joined(first), *(joined(".", tag("wbr"), part) for part in rest)]


def folded(summary: str, *content: Child) -> Html:
    """What is read on demand."""
    return tag("details", tag("summary", summary), *content)


def section(anchor: str, title: str, *content: Child) -> Html | None:
    """A part of the page under its heading; None without content."""
    there = [part for part in content if part is not None]
    if not there:
        return None
    return tag("section", tag("h2", title, id=f"{anchor}-title"), there, id=anchor, aria_labelledby=f"{anchor}-title")


def command(words: str) -> Html:
    """A line for the terminal, or some of a program."""
    return tag("pre", tag("code", words), tabindex=0)
