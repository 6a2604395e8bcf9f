"""A canvas for many small pictures at once: signed distances in, anti-aliased color out.

Everything per pixel is + - * / sqrt, floor and comparisons, which IEEE 754 rounds exactly: the pictures
are the same bit for bit on every machine. Distances to shapes follow Quilez' articles on 2-D distance
functions (iquilezles.org); a pixel's coverage is the distance to the edge in pixels, clipped.

Pictures live in the square [-1, 1] x [-1, 1], x to the right and y down; a batch is an axis.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]  # float32 throughout; NumPy's stubs lose the width in arithmetic
Rows = slice | npt.NDArray[np.int64]


class Patch:
    """The part of the canvas that a shape can touch, in some of the pictures; painted, then put back.

    Attributes:
        x: [1, 1, width], centers of the pixels.
        y: [1, height, 1].
    """

    def __init__(self, canvas: Canvas, rows: Rows, across: slice, down: slice) -> None:
        self.x = canvas.centers[None, None, across]
        self.y = canvas.centers[None, down, None]
        self._place = (slice(None), rows, down, across)
        self._canvas = canvas

    def __enter__(self) -> Patch:
        self._colors = self._canvas.planes[self._place].copy()
        return self

    def __exit__(self, *_: object) -> None:
        self._canvas.planes[self._place] = self._colors

    def paint(self, coverage: Array | float, color: Array) -> None:
        """Lay a color over the patch.

        Args:
            coverage: opacity in [0, 1], broadcastable to [pictures, height, width].
            color: broadcastable to [3, pictures, height, width].
        """
        change = color - self._colors
        change *= coverage
        self._colors += change


class Canvas:
    """`count` square pictures of `size` pixels; `planes` is [3, count, size, size] in [0, 1]."""

    def __init__(self, count: int, size: int) -> None:
        self.size = size
        self.planes = np.zeros((3, count, size, size), dtype=np.float32)
        self.centers = ((2 * np.arange(size) + 1) / size - 1).astype(np.float32)

    def whole(self, rows: Rows) -> Patch:
        """All pixels of some pictures."""
        return Patch(self, rows, slice(0, self.size), slice(0, self.size))

    def near(self, rows: Rows, x: Array, y: Array, reach_x: Array, reach_y: Array) -> Patch:
        """The pixels within reach of the points (x, y) of these pictures, and one more all around."""
        return Patch(self, rows, self._span(x - reach_x, x + reach_x), self._span(y - reach_y, y + reach_y))

    def pixels(self) -> npt.NDArray[np.uint8]:
        """The pictures as uint8 [count, size, size, 3]."""
        rounded = (self.planes * 255 + 0.5).astype(np.uint8)
        return np.ascontiguousarray(rounded.transpose(1, 2, 3, 0))

    def _span(self, low: Array, high: Array) -> slice:
        half = self.size / 2
        first = int(np.floor((float(low.min()) + 1) * half)) - 1
        last = int(np.ceil((float(high.max()) + 1) * half)) + 1
        return slice(min(max(first, 0), self.size), min(max(last, 0), self.size))


def unit(value: Array | float) -> Array:
    """Cut to [0, 1]."""
    return np.clip(np.asarray(value), 0, 1)


def coverage(distance: Array, pixels_per_unit: Array) -> Array:
    """The part of each pixel inside the shape: 1 inside, 0 outside, a ramp one pixel wide at the edge."""
    part = distance * -pixels_per_unit
    part += 0.5
    return np.clip(part, 0, 1, out=part)


def line_coverage(distance: Array, half_width: Array | float, pixels_per_unit: Array) -> Array:
    """Coverage of a line by the distance to its middle; one thinner than a pixel turns pale, not wide."""
    middle = distance * pixels_per_unit
    half = half_width * pixels_per_unit
    part = np.minimum(middle + 0.5, half) - np.maximum(middle - 0.5, -half)
    return np.maximum(part, 0, out=part)


def ellipse(x: Array, y: Array, radius_x: Array | float, radius_y: Array | float) -> Array:
    """Signed distance to an ellipse at the origin, exact at the edge to first order."""
    inverse_x, inverse_y = 1 / radius_x, 1 / radius_y
    across, down = x * inverse_x, y * inverse_y
    norm = np.sqrt(across * across + down * down)
    across = across * inverse_x
    down = down * inverse_y
    slope = np.sqrt(across * across + down * down)
    return norm * (norm - 1) / np.maximum(slope, 1e-6)


def circle(x: Array, y: Array, radius: Array | float) -> Array:
    """Signed distance to a circle at the origin."""
    return np.sqrt(x * x + y * y) - radius


def rounded_box(x: Array, y: Array, half_width: Array | float, half_height: Array | float, corner: float) -> Array:
    """Signed distance to a box at the origin with round corners."""
    across = np.abs(x) - half_width + corner
    down = np.abs(y) - half_height + corner
    inside = np.minimum(np.maximum(across, down), 0)
    across = np.maximum(across, 0)
    down = np.maximum(down, 0)
    return np.sqrt(across * across + down * down) + inside - corner


def segment(x: Array, y: Array, end_x: Array | float, end_y: Array | float) -> Array:
    """Distance to the line from the origin to (end_x, end_y)."""
    along = (x * end_x + y * end_y) / (end_x * end_x + end_y * end_y)
    along = unit(along)
    across, down = x - along * end_x, y - along * end_y
    return np.sqrt(across * across + down * down)


def arc(x: Array, y: Array, half_length: Array | float, bend: Array | float) -> tuple[Array, Array]:
    """Distance to the curve y = bend x^2, |x| <= half_length, and the place along it in [-1, 1]."""
    along = np.clip(x, -half_length, half_length)
    slope = 2 * bend * along
    down = y - bend * along * along
    beyond = x - along
    distance = np.sqrt(beyond * beyond + down * down / (1 + slope * slope))
    return distance, along / half_length


def glow(distance: Array, width: Array | float) -> Array:
    """A soft edge: 1 inside (distance <= 0), falling smoothly to 0 at `width`."""
    part = unit(1 - distance * (1 / width))
    return part * part * (3 - 2 * part)


def spot(x: Array, y: Array, radius_x: Array | float, radius_y: Array | float) -> Array:
    """A soft blob at the origin: 1 in the middle, 0 at the radius."""
    across, down = x * (1 / radius_x), y * (1 / radius_y)
    part = np.maximum(1 - across * across - down * down, 0)
    return part * part


def triangle_wave(t: Array) -> Array:
    """0 at whole numbers, 1 half-way, straight lines between."""
    return 1 - np.abs(2 * (t - np.floor(t)) - 1)


def stripes(t: Array, duty: float, footprint: Array | float) -> Array:
    """A square wave of period 1 that is 1 for the first `duty` of it, averaged over a pixel.

    Args:
        t: phase at the pixel's center.
        duty: part of the period that is on.
        footprint: width of a pixel in periods.
    """
    half = np.maximum(footprint, 1e-4) * 0.5
    return (_on_time(t + half, duty) - _on_time(t - half, duty)) / (2 * half)


def _on_time(t: Array, duty: float) -> Array:
    whole = np.floor(t)
    return whole * duty + np.minimum(t - whole, duty)


def noise(t: Array, footprint: Array | float) -> Array:
    """Smooth random bumps in [-1, 1], one per unit of t, that fade where a pixel spans a whole bump."""
    cell = np.floor(t)
    part = t - cell
    part = part * part * (3 - 2 * part)
    left = _scatter(cell)
    bump = left + part * (_scatter(cell + 1) - left)
    return (2 * bump - 1) * unit(1.6 - 1.6 * footprint)


def _scatter(cell: Array) -> Array:
    """A number in [0, 1) for a whole number; irregular enough for hair."""
    mixed = cell * 0.7548777 + cell * cell * 0.3819660
    return mixed - np.floor(mixed)


def turn_of(x: Array, y: Array) -> Array:
    """The direction of (x, y) from 'down' (0) through 'sideways' (+-1) to 'up' (+-2); no arc tangent."""
    total = np.maximum(np.abs(x) + np.abs(y), 1e-6)
    return np.copysign(1 - y / total, x)
