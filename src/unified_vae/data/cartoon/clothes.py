"""What is behind and below the face: the backdrop, the neck, the clothes."""

from __future__ import annotations

import numpy as np

from unified_vae.data.cartoon.canvas import (
    Array,
    Canvas,
    Patch,
    circle,
    coverage,
    ellipse,
    glow,
    line_coverage,
    rounded_box,
    segment,
    spot,
    stripes,
    triangle_wave,
    turn_of,
    unit,
)
from unified_vae.data.cartoon.figure import Figure

_CHEST_Y = 0.67  # top of the shoulders in the picture
_SAG = 0.30  # how far shoulders and stripes fall towards the sides


def draw_backdrop(canvas: Canvas, figure: Figure) -> None:
    """A color, with a pattern in other tones of it."""
    for name, pattern in _BACKDROPS.items():
        chosen = figure.only("backdrop", name)
        if len(chosen):
            with canvas.whole(chosen.rows) as patch:
                pattern(patch, chosen)


def _plain(patch: Patch, figure: Figure) -> None:
    patch.paint(1, figure.colors["backdrop"][1])


def _gradient(patch: Patch, figure: Figure) -> None:
    light, _, deep = figure.colors["backdrop"]
    slant = 0.35 * figure.variations["pattern"]
    height = unit((patch.y + slant * patch.x) * 0.42 + 0.5)
    patch.paint(1, light + height * (deep - light))


def _stripes(patch: Patch, figure: Figure) -> None:
    light, base, deep = figure.colors["backdrop"]
    period = 0.30 + 0.06 * figure.variations["pattern_scale"]
    phase = (patch.x + 0.75 * patch.y + figure.variations["pattern"]) / period
    footprint = 1.5 / (period * figure.body_pixels)
    patch.paint(1, base)
    patch.paint(stripes(phase, 0.5, footprint), light)
    patch.paint(stripes(phase + 0.32, 0.14, footprint), deep)


def _dots(patch: Patch, figure: Figure) -> None:
    light, base, deep = figure.colors["backdrop"]
    period = 0.30 + 0.05 * figure.variations["pattern_scale"]
    down = patch.y / period + figure.variations["pattern"]
    row = np.floor(down)
    across = patch.x / period + 0.5 * (row - 2 * np.floor(row / 2))
    distance = circle(across - np.floor(across) - 0.5, down - row - 0.5, 0.24) * period
    patch.paint(1, base)
    patch.paint(coverage(distance, figure.body_pixels), light)
    patch.paint(line_coverage(np.abs(distance), 0.012, figure.body_pixels), deep)


def _rays(patch: Patch, figure: Figure) -> None:
    light, base, deep = figure.colors["backdrop"]
    right, down = patch.x - figure.x, patch.y - 0.15
    away = np.sqrt(right * right + down * down)
    footprint = 5 / (np.maximum(away, 0.01) * figure.body_pixels)
    on = stripes(turn_of(right, down) * 4 + figure.variations["pattern"], 0.5, footprint)
    patch.paint(1, base)
    patch.paint(on, light)
    patch.paint(on * glow(1.5 - away, 0.7) * 0.5, deep)


_BACKDROPS = {"plain": _plain, "gradient": _gradient, "stripes": _stripes, "dots": _dots, "rays": _rays}


def draw_body(canvas: Canvas, figure: Figure) -> None:
    """Shoulders in their clothes, and the neck."""
    patch, x, y = _chest(canvas, figure, 0.95, 0.3)
    with patch:
        base, shade, _ = figure.colors["clothes"]
        slope = y - _SAG * x * x
        shape = coverage(rounded_box(x, slope - 0.56, 0.80, 0.56, 0.30) * 0.9, figure.body_pixels)
        fold = unit(0.1 + 0.55 * x + 0.9 * y)
        patch.paint(shape, base + fold * (0.75 * (shade - base)))
        _cloth(patch, figure, shape, x, slope)
        arm = line_coverage(segment(np.abs(x) - 0.55, y - 0.26, -0.03, 0.2), 0.010, figure.body_pixels)
        patch.paint(arm * shape, shade)
    _neck(canvas, figure)


def _chest(canvas: Canvas, figure: Figure, reach: float, above: float) -> tuple[Patch, Array, Array]:
    """The lower part of the picture, relative to the middle of the shoulders."""
    x = 0.05 * figure.variations["across"]
    bottom = 1 - _CHEST_Y
    middle, half = _CHEST_Y + (bottom - above) / 2, (bottom + above) / 2
    patch = canvas.near(figure.rows, x, np.full_like(x, middle), np.full_like(x, reach), np.full_like(x, half))
    return patch, patch.x - x, patch.y - _CHEST_Y


def _cloth(patch: Patch, figure: Figure, shape: Array, x: Array, slope: Array) -> None:
    """The pattern that belongs to the garment."""
    _, shade, trim = figure.colors["clothes"]
    pixel = 1 / figure.body_pixels
    breton = stripes(slope * 11 + 0.55, 0.42, 11 * pixel) * figure.has("clothes", "breton")
    sleeves = coverage(0.38 + 0.25 * slope - np.abs(x), figure.body_pixels) * figure.has("clothes", "tee")
    zigzag = stripes(slope * 3 + 0.45, 0.26, 3 * pixel) * stripes(x * 7 + triangle_wave(slope * 6), 0.6, 9 * pixel)
    knit = figure.has("clothes", "jumper")
    stitches = stripes(triangle_wave(x * 13) * 0.25 + slope * 13, 0.5, 13 * pixel) * knit
    patch.paint(shape * (0.55 * stitches), shade)
    patch.paint(shape * np.maximum(np.maximum(breton, sleeves), zigzag * knit), trim)


def _neck(canvas: Canvas, figure: Figure) -> None:
    patch, x, y = _chest(canvas, figure, 0.44, 0.50)
    with patch:
        _, base, shade, _ = figure.colors["skin"]
        opening = np.maximum(ellipse(x, y, 0.27, 0.17), -y)
        hood = coverage(ellipse(x, y + 0.03, 0.415, 0.20), figure.body_pixels)
        patch.paint(hood * figure.has("clothes", "hoodie"), 0.85 * figure.colors["clothes"][1])
        throat = rounded_box(x, y + 0.2, 0.165, 0.28, 0.06)
        skin = coverage(np.minimum(opening, throat), figure.body_pixels)
        patch.paint(skin, base)
        head = ellipse(patch.x - figure.x, patch.y - figure.y - 0.09, 0.44 * figure.scale, 0.56 * figure.scale)
        patch.paint(skin * (0.75 * glow(head, 0.10)), shade)  # the head's shadow


def draw_collar(canvas: Canvas, figure: Figure) -> None:
    """What the garment has round the neck."""
    for collar, names in _COLLARS.items():
        chosen = figure.only("clothes", *names)
        if len(chosen):
            patch, x, y = _chest(canvas, chosen, 0.50, 0.22)
            with patch:
                collar(patch, chosen, x, y)


def _band(patch: Patch, figure: Figure, x: Array, y: Array) -> None:
    _, shade, trim = figure.colors["clothes"]
    rim = ellipse(x, y, 0.285, 0.185)
    patch.paint(coverage(np.maximum(np.abs(rim) - 0.036, -y), figure.body_pixels), trim)
    seam = np.maximum(np.abs(rim - 0.04), -y)
    patch.paint(line_coverage(seam, 0.008, figure.body_pixels), shade)


def _points(patch: Patch, figure: Figure, x: Array, y: Array) -> None:
    """A shirt's button band, button and collar points."""
    base, shade, trim = figure.colors["clothes"]
    side = np.abs(x)
    patch.paint(coverage(np.maximum(side - 0.055, 0.14 - y), figure.body_pixels), base)
    edge = np.maximum(np.abs(side - 0.055), 0.14 - y)
    patch.paint(line_coverage(edge, 0.008, figure.body_pixels), shade)
    patch.paint(coverage(circle(x, y - 0.27, 0.025), figure.body_pixels), trim)
    inner = side * -0.78 - (y - 0.13) * 0.63  # a collar point is what four half-planes share
    outer = (side - 0.30) * 0.94 + (y + 0.06) * 0.34
    lower = (side - 0.26) * -0.20 + (y - 0.20) * 0.98
    point = np.maximum(np.maximum(inner, outer), np.maximum(lower, -(y + 0.08)))
    patch.paint(0.5 * glow(point, 0.05) * unit(y * 10), shade)
    patch.paint(coverage(point, figure.body_pixels), trim)
    patch.paint(line_coverage(np.abs(point), 0.007, figure.body_pixels), shade)


def _hood(patch: Patch, figure: Figure, x: Array, y: Array) -> None:
    """A hoodie's thick hood round the neck, and its strings."""
    base, shade, trim = figure.colors["clothes"]
    middle = ellipse(x, y + 0.03, 0.33, 0.19)
    ring = np.maximum(np.abs(middle) - 0.085, -(y + 0.03))
    tone = unit(middle * 5 + 0.5)
    patch.paint(0.5 * glow(ring, 0.06) * unit(y * 12), shade)
    patch.paint(coverage(ring, figure.body_pixels), shade + tone * (base - shade))
    string = line_coverage(segment(np.abs(x) - 0.10, y - 0.17, 0.015, 0.16), 0.014, figure.body_pixels)
    patch.paint(string, trim)


def _roll(patch: Patch, figure: Figure, x: Array, y: Array) -> None:
    """A jumper's roll neck."""
    base, shade, _ = figure.colors["clothes"]
    roll = rounded_box(x, y - 0.4 * x * x + 0.01, 0.235, 0.105, 0.07)
    patch.paint(0.5 * glow(roll, 0.05) * unit(y * 12), shade)
    rib = 0.7 * stripes(x * 22, 0.4, 22 / figure.body_pixels)
    tone = unit(rib + 0.6 * spot(x - 0.2, y, 0.25, 0.3))
    patch.paint(coverage(roll, figure.body_pixels), base + tone * (shade - base))


_COLLARS = {_band: ("tee", "breton"), _points: ("shirt",), _hood: ("hoodie",), _roll: ("jumper",)}
