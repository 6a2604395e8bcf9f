"""A line chart as inline SVG, to be told apart without colour: dashes, markers and names at the lines' ends."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from unified_vae.experiment.report.html import Html, tag
from unified_vae.experiment.report.ticks import round_steps, short

WIDTH, HEIGHT = 340, 230
LEFT, TOP, BOTTOM = 46, 26, 36
LETTER = 6.4  # units that a letter of a label takes
MOST_POINTS = 240  # of a line; more are averaged, which at this size nobody sees
MOST_MARKERS = 8
LABEL_HEIGHT = 12.5
BEGINNING = 0.05  # part of a run whose values may leave the frame ...
SQUASHED = 3.0  # ... where they would make it so many times as high
LARGEST = 1e100  # that a frame is computed for
DASHES = ("", "6 3", "2 3", "9 3 2 3", "12 4", "4 2 1 2 1 2")
MARKERS = (
    "M-2.6 0a2.6 2.6 0 1 0 5.2 0a2.6 2.6 0 1 0-5.2 0z",  # disc
    "M-2.4-2.4h4.8v4.8h-4.8z",  # square
    "M0-3.2L3 2.4H-3z",  # triangle
    "M0-3.4L3.2 0L0 3.4L-3.2 0z",  # diamond
    "M-2.6-2.6L2.6 2.6M2.6-2.6L-2.6 2.6",  # cross
    "M-3.2 0H3.2M0-3.2V3.2",  # plus
)
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """Points in the order in which they are joined, and what stands at the last of them."""

    label: str
    points: Points


@dataclass(frozen=True)
class Level:
    """A value to compare with, across the whole chart."""

    label: str
    value: float


def chart(
    title: str,
    x_label: str,
    y_label: str,
    lines: Sequence[Line],
    levels: Sequence[Level] = (),
    x_from: float | None = None,
    y_from: float | None = None,
) -> Html | None:
    """A figure with its caption; None where there is nothing to draw.

    Args:
        x_from: where the axis begins; None: at the lowest value, and names may stand inside the frame.
        y_from: a value that the other axis has to show.
    """
    drawn = [Line(line.label, thinned(finite(line.points))) for line in lines]
    drawn = [line for line in drawn if line.points]
    if not drawn:
        return None
    frame = _Frame.around(drawn, [level for level in levels if drawable(level.value)], x_from, y_from)
    parts = [*frame.axes(x_label, y_label), *frame.references(), *frame.drawn(), *frame.names()]
    picture = tag(
        "svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=_in_words(title, drawn, y_label)
    )
    note = " The first values lie outside the frame." if frame.cut else ""
    return tag("figure", tag("figcaption", tag("b", title), f".{note}" if note else ""), picture, class_="chart")


def finite(points: Points) -> Points:
    """Those that can be drawn."""
    return [point for point in points if all(map(drawable, point))]


def drawable(value: float) -> bool:
    """Whether it is a number, and not so large that a range of such numbers would be none."""
    return abs(value) <= LARGEST


def thinned(points: Points) -> Points:
    """At most MOST_POINTS, each the mean of as many neighbours; the first and the last stay as they are."""
    if len(points) <= MOST_POINTS:
        return points
    inner, bins = points[1:-1], MOST_POINTS - 2
    edges = [round(number * len(inner) / bins) for number in range(bins + 1)]
    means = [_mean(inner[start:end]) for start, end in itertools.pairwise(edges)]
    return [points[0], *means, points[-1]]


def _mean(points: Points) -> tuple[float, float]:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)


def _in_words(title: str, lines: Sequence[Line], unit: str) -> str:
    told = (f"{line.label} from {line.points[0][1]:.4g} to {line.points[-1][1]:.4g}" for line in lines)
    return f"{title} ({unit}): {'; '.join(told)}"


@dataclass(frozen=True)
class _Frame:
    """The range of both axes and the room inside them."""

    lines: Sequence[Line]
    levels: Sequence[Level]
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    right: float
    cut: bool

    @classmethod
    def around(
        cls, lines: Sequence[Line], levels: Sequence[Level], x_from: float | None, y_from: float | None
    ) -> _Frame:
        xs = [x for line in lines for x, _ in line.points]
        low = min(xs) if x_from is None else min(x_from, *xs)
        x_range = padded(low, max(xs), 0.06 if x_from is None else 0.0)
        values = [*(level.value for level in levels), *([] if y_from is None else [y_from])]
        settled = [y for line in lines for y in _settled(line.points)]
        whole, later = [*(y for line in lines for _, y in line.points), *values], [*settled, *values]
        cut = x_from is not None and _span(whole) > SQUASHED * _span(later) > 0
        longest = max(len(name) for name in (*(line.label for line in lines), *(level.label for level in levels)))
        right = WIDTH - (12 if x_from is None else 12 + LETTER * min(longest, 14))
        chosen = later if cut else whole
        return cls(lines, levels, x_range, padded(min(chosen), max(chosen), 0.06), right, cut)

    def x(self, value: float) -> float:
        low, high = self.x_range
        return LEFT + (self.right - LEFT) * (value - low) / (high - low)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return TOP + (HEIGHT - BOTTOM - TOP) * (high - value) / (high - low)

    def axes(self, x_label: str, y_label: str) -> list[Html]:
        """Grid, ticks and what they measure."""
        bottom, middle = HEIGHT - BOTTOM, (LEFT + self.right) / 2
        grid, words = [], []
        for value in round_steps(*self.y_range, 5):
            grid.append(f"M{LEFT} {self.y(value):.1f}H{self.right:.1f}")
            words.append(_text(LEFT - 5, self.y(value) + 4, short(value), "end"))
        for value in round_steps(*self.x_range, 4):
            grid.append(f"M{self.x(value):.1f} {bottom}v4")
            words.append(_text(self.x(value), bottom + 15, short(value), "middle"))
        return [
            tag("path", d="".join(grid), class_="grid"),
            tag("path", d=f"M{LEFT} {TOP}V{bottom}H{self.right:.1f}", class_="axis"),
            *words,
            _text(middle, HEIGHT - 8, x_label, "middle"),
            _text(2, 12, y_label, "start"),
        ]

    def references(self) -> list[Html]:
        """The levels."""
        return [
            tag("path", d=f"M{LEFT} {self.y(level.value):.1f}H{self.right:.1f}", class_="level")
            for level in self.levels
        ]

    def drawn(self) -> list[Html]:
        """Lines, inside the frame, and their markers."""
        return [part for place, line in enumerate(self.lines) for part in self._line(line, place)]

    def _line(self, line: Line, place: int) -> list[Html]:
        kind = f"s{place % len(MARKERS)}"
        shape = "".join(
            f"{'L' if at else 'M'}{self.x(x) - LEFT:.1f} {self.y(y) - TOP:.1f}" for at, (x, y) in enumerate(line.points)
        )
        path = tag("path", d=shape, class_=f"line {kind}", stroke_dasharray=DASHES[place % len(DASHES)] or None)
        wide, high = f"{self.right - LEFT:.1f}", HEIGHT - BOTTOM - TOP
        return [tag("svg", path, x=LEFT, y=TOP, width=wide, height=high), *self._markers(line, place, kind)]

    def _markers(self, line: Line, place: int, kind: str) -> list[Html]:
        apart = max(1, math.ceil(len(line.points) / MOST_MARKERS))
        shifted = (place * apart // max(1, len(self.lines))) % apart
        chosen = [*line.points[shifted::apart], line.points[-1]]
        low, high = self.y_range
        return [
            tag("path", d=MARKERS[place % len(MARKERS)], class_=f"mark {kind}", transform=self._at(x, y))
            for x, y in dict.fromkeys(chosen)
            if low <= y <= high
        ]

    def _at(self, x: float, y: float) -> str:
        return f"translate({self.x(x):.1f} {self.y(y):.1f})"

    def names(self) -> list[Html]:
        """Beside the last point of each line and at the end of each level; none above another."""
        wanted = [
            (line.label, *line.points[-1], f"name s{place % len(MARKERS)}") for place, line in enumerate(self.lines)
        ]
        wanted += [(level.label, self.x_range[1], level.value, "name") for level in self.levels]
        heights = parted([self.y(y) for _, _, y, _ in wanted], TOP, HEIGHT - BOTTOM)
        return [self._name(text, self.x(x), at, kind) for (text, x, _, kind), at in zip(wanted, heights, strict=True)]

    def _name(self, text: str, x: float, y: float, kind: str) -> Html:
        words = text if len(text) <= 14 else f"{text[:13]}…"
        fits = x + 6 + LETTER * len(words) <= WIDTH
        return _text(x + 6 if fits else x - 6, y + 4, words, "start" if fits else "end", kind)


def _text(x: float, y: float, words: str, anchor: str, kind: str | None = None) -> Html:
    return tag("text", words, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, class_=kind)


def _settled(points: Points) -> list[float]:
    """The values after the beginning of a line; those of a single point are all of them."""
    low, high = points[0][0], points[-1][0]
    return [y for x, y in points if x >= low + BEGINNING * (high - low)]


def _span(values: Sequence[float]) -> float:
    return max(values) - min(values) if values else 0.0


def padded(low: float, high: float, part: float) -> tuple[float, float]:
    """A range with some room at both ends, and never empty."""
    span = high - low
    if span <= 1e-12 * max(abs(low), abs(high)):
        half = 0.5 * abs(low) or 0.5
        return low - half, high + half
    return low - part * span, high + part * span


def parted(heights: Sequence[float], top: float, bottom: float) -> list[float]:
    """The same heights moved as little as needed for LABEL_HEIGHT between neighbours, inside the frame if they fit."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    moved = list(heights)
    for before, after in itertools.pairwise(order):
        moved[after] = max(moved[after], moved[before] + LABEL_HEIGHT)
    limit = bottom
    for index in reversed(order):
        moved[index] = min(moved[index], limit)
        limit = moved[index] - LABEL_HEIGHT
    over = max(0.0, top - min(moved, default=top))
    return [height + over for height in moved]
