"""Elements of a page, escaped wherever they come from."""

from __future__ import annotations

import html
from collections.abc import Iterable

from unified_vae.core.printable import printable

_VOID = {"br", "img", "link", "meta", "wbr"}


class Html(str):
    """Text that is markup already. Everything else is escaped before it becomes part of a page."""

    __slots__ = ()


Child = str | int | float | None | Iterable["Child"]


def escaped(text: str) -> Html:
    """Text as it is to be read: signs of markup escaped, signs that steer a screen or are no text written out."""
    lines = (printable(line) for line in text.split("\n"))
    return Html(html.escape("\n".join(lines)))


def joined(*children: Child) -> Html:
    """Children one after the other, of any depth; None is nothing."""
    parts: list[str] = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, str | int | float):
            parts.append(escaped(str(child)))
        else:
            parts.append(joined(*child))
    return Html("".join(parts))


def tag(element: str, *children: Child, **attributes: str | int | float | bool | None) -> Html:
    """An element. Of an attribute's name a last `_` is dropped and others become `-`; None and False leave it out."""
    opened = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escaped("" if value is True else str(value))}"'
        for name, value in attributes.items()
        if value is not None and value is not False
    )
    if element in _VOID:
        return Html(f"<{element}{opened}>")
    return Html(f"<{element}{opened}>{joined(*children)}</{element}>")
