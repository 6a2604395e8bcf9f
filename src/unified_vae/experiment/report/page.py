"""The frame of a page: one file, its style inside it, that asks no server for anything."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from importlib.resources import files

from unified_vae.core.version import __version__
from unified_vae.experiment.report.html import Html, tag
from unified_vae.experiment.report.ticks import sentence

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""What a browser may load for it: what is in the file."""


def page(title: str, status: str, sections: Sequence[Html | None], contents: Sequence[tuple[str, str]]) -> str:
    """The whole file.

    Args:
        title: escaped here, like everything else that is no `Html`.
        status: a line below it.
        sections: parts; None is left out.
        contents: (anchor, title) of those that there may be.
    """
    there = [part for part in sections if part is not None]
    links = [(anchor, words) for anchor, words in contents if any(f'<section id="{anchor}"' in part for part in there)]
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Html(style())),
    ]
    body = [
        tag("header", tag("h1", title), tag("p", sentence(status), class_="status")),
        tag(
            "nav",
            tag("ul", [tag("li", tag("a", words, href=f"#{anchor}")) for anchor, words in links]),
            aria_label="Parts of this page",
        ),
        tag("main", there),
        tag("footer", tag("p", _written())),
    ]
    return f"<!DOCTYPE html>\n{tag('html', tag('head', head), tag('body', body), lang='en')}\n"


def style() -> str:
    """The style sheet, which lies beside this file in the package."""
    return (files("unified_vae.experiment.report") / "report.css").read_text(encoding="utf-8")


def _written() -> str:
    now = datetime.datetime.now(datetime.UTC)
    return f"Written {now:%Y-%m-%d %H:%M} UTC by unified-vae {__version__}."
