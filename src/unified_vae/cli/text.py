"""Lines of plain text: widths, wrapping, numbers as words. No colour, no control characters."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Sequence

WIDTH = 108


def wrapped(text: str, indent: str = "") -> list[str]:
    """A sentence in lines of at most WIDTH, all but the first after `indent`. Long paths stay whole."""
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False) or [""]


def wrapped_before_command(text: str, indent: str = "") -> list[str]:
    """As `wrapped`, but a command at the end of the text stays on one line, so that it can be copied."""
    words, start, command = text.partition("uv run ")
    if not start:
        return wrapped(text, indent)
    return [text] if len(text) <= WIDTH else [*wrapped(words.rstrip(), indent), f"{indent}{start}{command}"]


def joined(cells: Iterable[str], indent: str = "    ") -> list[str]:
    """Cells two spaces apart, in as few lines as hold them; a cell is never broken."""
    lines: list[str] = []
    for cell in cells:
        if lines and len(lines[-1]) + 2 + len(cell) <= WIDTH:
            lines[-1] += f"  {cell}"
        else:
            lines.append(f"{indent}{cell}" if lines else cell)
    return lines


def table(rows: Sequence[Sequence[str]], indent: str = "  ") -> list[str]:
    """Columns as wide as their widest cell; the last one wraps below itself."""
    count = max(map(len, rows), default=0)
    widths = [max(len(row[column]) for row in rows) for column in range(count - 1)]
    lines: list[str] = []
    for row in rows:
        head = indent + "".join(f"{cell:<{width}}  " for cell, width in zip(row, widths, strict=False))
        lines += [line.rstrip() for line in wrapped(head.replace(" ", "\0") + row[-1], " " * len(head))]
    return [line.replace("\0", " ").rstrip() for line in lines]


def value_text(value: object) -> str:
    """A setting as it is written in JSON and after `--set`."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def number(value: float) -> str:
    """A measured number in four significant digits."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def gibibytes(count: int) -> str:
    """Bytes in GiB, one decimal from 0.1 to 100."""
    size = count / 2**30
    if size < 0.1:
        return f"{size:.2g}"
    return f"{size:.1f}" if size < 100 else f"{size:.0f}"
