"""Round numbers along an axis, and numbers and times in words."""

from __future__ import annotations

import math
import sys


def round_steps(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers between two."""
    raw = (high - low) / max(count, 1)
    if raw < sys.float_info.min or not math.isfinite(raw):  # so small a number has no power of ten below it
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [n * step for n in range(first, last + 1)]


def short(value: float) -> str:
    """As on an axis: 12k, 1.5M, 0.0005."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            unit = 1e3 if letter == "k" else size
            return f"{value / unit:.6g}{letter}"
    return f"{value:.6g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.0e}".replace("e-0", "e-")


def duration(seconds: float) -> str:
    """In the unit that says most: 48 s, 12 min, 3 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60:,} h {minutes % 60:02d} min"


def sentence(words: str) -> str:
    """With a capital letter and a full stop."""
    return f"{words[:1].upper()}{words[1:].rstrip('.')}."
