"""Eight hair styles: an outline, an opening for the face, and strands that flow from a parting."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from unified_vae.data.cartoon.canvas import (
    Array,
    Canvas,
    Patch,
    circle,
    coverage,
    ellipse,
    glow,
    noise,
    rounded_box,
    triangle_wave,
    turn_of,
    unit,
)
from unified_vae.data.cartoon.figure import Figure


def draw_hair_behind(canvas: Canvas, figure: Figure) -> None:
    """The hair that hangs behind the neck."""
    for name, bottom in (("bob", 0.47), ("long", 0.98)):
        chosen = figure.only("hair_style", name)
        if len(chosen):
            patch, u, v = chosen.at(canvas, 0.0, bottom / 2, 0.72, bottom / 2 + 0.06)
            with patch:
                v = v + bottom / 2
                outline = np.maximum(_curtain(chosen, u, v, bottom), -v)  # the head hides the rest
                patch.paint(coverage(outline, chosen.pixels), 0.85 * chosen.colors["hair"][2])


def draw_hair_in_front(canvas: Canvas, figure: Figure) -> None:
    """The hair round the face."""
    for name, style in _STYLES.items():
        chosen = figure.only("hair_style", name)
        if len(chosen):
            style(canvas, chosen)


# --- what the styles share ---


def _paint(
    patch: Patch, figure: Figure, hair: Array, strands: tuple[Array, Array], shine: Array, depth: Array | float
) -> None:
    """Hair with strands.

    Args:
        hair: signed distance to the hair's outline.
        strands: the number of the strand at each pixel, and how many strands lie under a pixel.
        shine: light on the hair, about 0 to 1.
        depth: shade in the hair, about 0 to 1.
    """
    light, base, dark = figure.colors["hair"]
    strand, footprint = strands
    strand = strand + 31 * (figure.variations["strands"] + 1)
    tone = 0.38 * noise(strand, footprint) + 0.34 * noise(strand * 2.7 + 17, footprint * 2.7)
    tone += shine * (1 + 0.9 * tone) - depth
    tone -= 0.55 * glow(-hair, 0.045)
    shape = coverage(hair, figure.pixels)
    patch.paint(shape, base)
    patch.paint(shape * unit(tone), light)
    patch.paint(shape * unit(-tone), dark)


def _shadow(patch: Patch, figure: Figure, u: Array, v: Array, hair: Array, width: float = 0.075) -> None:
    """The shadow of the hair on the skin."""
    skin = coverage(figure.head_distance(u, v), figure.pixels)
    patch.paint(skin * (0.5 * glow(hair, width)), figure.colors["skin"][2])


def _crown(canvas: Canvas, figure: Figure, top: float, bottom: float) -> tuple[Patch, Array, Array]:
    """The pixels of the upper head, between two heights."""
    middle = (top + bottom) / 2
    patch, u, v = figure.at(canvas, 0.0, middle, 0.64, (bottom - top) / 2)
    return patch, u, v + middle


def _sheen(u: Array, v: Array, height: float) -> Array:
    """A soft band of light across the crown, upper left."""
    band = v - height - 0.35 * u * u
    part = np.maximum(1 - 90 * band * band, 0)
    side = np.maximum(1 - 3.6 * (u + 0.12) * (u + 0.12), 0)
    return 0.85 * part * part * side


def _fan(figure: Figure, u: Array, v: Array, count: float) -> tuple[Array, Array]:
    """Strands that spread from the origin."""
    away = np.maximum(np.abs(u) + np.abs(v), 0.02)
    return turn_of(u, v) * count, 1.2 * count / (away * figure.pixels)


def _front(figure: Figure) -> Array:
    """How far the face's opening in the hair moves as the head turns."""
    return 0.30 * figure.turn_sine


def _oval(figure: Figure, u: Array, v: Array, top: float, width: float = 0.44) -> Array:
    """Signed distance to the part of the face that short hair leaves free."""
    return ellipse(u - _front(figure), v - 0.17, width, 0.17 - top)


def _arch(figure: Figure, u: Array, v: Array) -> Array:
    """A face between two curtains of hair: the overlap of two ellipses, pointed at the parting."""
    return ellipse(np.abs(u - _front(figure)) + 0.16, v - 0.22, 0.585, 0.66)


def _scallops(t: Array) -> Array:
    """A row of round bumps from 0 to 1, one per unit of t."""
    valley = 1 - triangle_wave(t)
    return 1 - valley * valley


def _wave(v: Array) -> Array:
    """Hair that hangs in waves, -1 to 1."""
    swing = triangle_wave(v * 2.4 + 0.2)
    return 2 * swing * swing * (3 - 2 * swing) - 1


# --- the styles ---


def _cropped(canvas: Canvas, figure: Figure) -> None:
    patch, u, v = _crown(canvas, figure, -0.65, 0.04)
    with patch:
        face = rounded_box(u - _front(figure), v - 0.22, 0.40, 0.50, 0.20)
        hair = np.maximum(np.maximum(ellipse(u, v + 0.04, 0.525, 0.565), -face), v + 0.04)
        _shadow(patch, figure, u, v, hair, 0.05)
        around, footprint = _fan(figure, u, v + 0.30, 16)
        away = np.sqrt(u * u + (v + 0.30) * (v + 0.30))
        tufts = noise(away * 24 + around * 0.8 + 40, 24 / figure.pixels + footprint)  # breaks the strands up
        fade = 0.3 * unit(0.9 + v * 2)  # shorter at the temples
        _paint(patch, figure, hair, (around + 1.2 * tufts, 1.5 * footprint), _sheen(u, v, -0.46), fade)


def _parted(canvas: Canvas, figure: Figure) -> None:
    patch, u, v = _crown(canvas, figure, -0.76, 0.14)
    with patch:
        right = u - 0.35 * figure.turn_sine + 0.17 - 0.04 * figure.variations["part"]
        cap = ellipse(u, v + 0.07, 0.555, 0.60) - 0.05 * glow(np.abs(right - 0.12), 0.5)
        beside = np.maximum(right, 0)
        sweep = -0.36 + 0.55 * beside * beside + 0.10 * beside + 0.9 * np.maximum(-right, 0)
        face = np.maximum(_oval(figure, u, v, -0.44), (sweep - v) * 0.85)
        hair = np.maximum(np.maximum(cap, -face), v - 0.06)
        _shadow(patch, figure, u, v, hair)
        strands = _fan(figure, right, v + 0.53 - 0.35 * np.abs(right), 13)
        groove = 0.6 * glow(np.abs(right + 0.1 * v), 0.03) * unit(-8 * (v + 0.36))
        _paint(patch, figure, hair, strands, _sheen(u, v, -0.44), groove)


def _spiky(canvas: Canvas, figure: Figure) -> None:
    patch, u, v = _crown(canvas, figure, -0.90, 0.06)
    with patch:
        around = turn_of(u, v + 0.02)
        spikes = triangle_wave((around + 0.06) * 3.5) * unit(1.6 * np.abs(around) - 1.2)
        cap = (ellipse(u, v + 0.06, 0.53, 0.575) - 0.19 * spikes) * 0.8
        zigzag = -0.33 + 0.10 * triangle_wave((u - 0.35 * figure.turn_sine) * 5)
        face = np.maximum(_oval(figure, u, v, -0.42), (zigzag - v) * 0.75)
        hair = np.maximum(np.maximum(cap, -face), v - 0.02)
        _shadow(patch, figure, u, v, hair, 0.06)
        tips = 0.55 * np.maximum(spikes - 0.35, 0)
        _paint(patch, figure, hair, _fan(figure, u, v + 0.02, 15), 0.7 * _sheen(u, v, -0.42) + tips, 0)


def _curly(canvas: Canvas, figure: Figure) -> None:
    patch, u, v = figure.at(canvas, 0.0, -0.27, 0.74, 0.56)
    with patch:
        v = v - 0.27
        cap = ellipse(u, v + 0.17, 0.64, 0.545) - 0.06 * _scallops(turn_of(u, v + 0.15) * 5)
        edge = turn_of(u - 0.35 * figure.turn_sine, v - 0.17)
        face = _oval(figure, u, v, -0.30, 0.425) - 0.035 * _scallops(edge * 3.5 + 0.5)
        hair = np.maximum(np.maximum(cap, -face), v - 0.24)
        _shadow(patch, figure, u, v, hair)
        ring, light, gap = _ringlets(u, v)
        _paint(patch, figure, hair, (ring, 44 / figure.pixels), 0.5 * _sheen(u, v, -0.5) + light, gap)


def _ringlets(u: Array, v: Array) -> tuple[Array, Array, Array]:
    """Curls laid like bricks: strands that run outwards in each, its light (upper left), its rim."""
    down = v * 7.2 + 20
    row = np.floor(down)
    across = u * 6.4 + 20 + 0.5 * (row - 2 * np.floor(row / 2))
    column = np.floor(across)
    right, below = across - column - 0.5, down - row - 0.5
    away = np.sqrt(right * right + below * below)
    ring = away * 7 + turn_of(right, below) * 0.8 + row * 7 + column * 3
    return ring, 0.24 - 0.9 * (right + below), 1.1 * unit((away - 0.34) * 5)


def _curtain(figure: Figure, u: Array, v: Array, bottom: float, wave: Array | float = 0.0) -> Array:
    """The outline of hair worn down to `bottom`: a cap and a box below it that widens downwards."""
    flare = unit(v + 0.1) * (0.10 if bottom < 0.9 else 0.03)
    low = bottom + 0.03 * figure.variations["hair"]
    side = rounded_box(u, v - (low - 0.10) / 2, 0.575 + 0.028 * wave + flare, (low + 0.10) / 2, 0.10)
    return np.minimum(ellipse(u, v + 0.06, 0.585, 0.60), side)


def _bob(canvas: Canvas, figure: Figure) -> None:
    patch, u, v = figure.at(canvas, 0.0, -0.08, 0.70, 0.62)
    with patch:
        v = v - 0.08
        inner = u - _front(figure)
        fringe = -0.235 + 0.30 * inner * inner + 0.018 * triangle_wave(inner * 9)
        face = np.maximum(rounded_box(inner, v - 0.5, 0.405, 0.9, 0.2), fringe - v)
        hair = np.maximum(_curtain(figure, u, v, 0.47), -face)
        _shadow(patch, figure, u, v, hair)
        spread = v + 1.25
        inside = 0.5 * glow(np.abs(inner) - 0.41, 0.06) * unit((v + 0.25) * 8)
        strands = (inner / spread * 40, 40 / (spread * figure.pixels))
        _paint(patch, figure, hair, strands, _sheen(u, v, -0.38), inside)


def _long(canvas: Canvas, figure: Figure) -> None:
    patch, u, v = figure.at(canvas, 0.0, 0.17, 0.70, 0.88)
    with patch:
        v = v + 0.17
        swing = _wave(v)
        neck = rounded_box(u, v - 0.95, 0.36 + 0.02 * swing, 0.75, 0.05)
        hair = np.maximum(_curtain(figure, u, v, 0.98, swing), -np.minimum(_arch(figure, u, v), neck))
        _shadow(patch, figure, u, v, hair)
        fall = np.clip(v + 0.66, 0.12, 0.62)  # strands leave the parting, then hang
        wavy = u - 0.35 * figure.turn_sine * glow(v + 0.5, 0.8) - 0.028 * swing * np.copysign(np.float32(1), u)
        strands = (wavy / fall * 20, 24 / (fall * figure.pixels))
        inside = 0.45 * glow(np.abs(u) - 0.36, 0.12) * unit((v - 0.05) * 6)
        hanging = 0.35 * unit(swing) * unit((v - 0.1) * 4)
        _paint(patch, figure, hair, strands, _sheen(u, v, -0.36) + hanging, inside)


def _bun(canvas: Canvas, figure: Figure) -> None:
    patch, u, v = _crown(canvas, figure, -0.96, 0.06)
    with patch:
        right, down = u + 0.12 * figure.turn_sine, v + 0.73
        ball = circle(right, down, 0.20)
        turns, spread = _fan(figure, right + 0.10, down + 0.08, 9)
        swirl = np.sqrt(right * right + down * down) * 26 + turns
        light = 0.75 * glow(circle(right + 0.07, down + 0.07, 0.02), 0.12)
        _paint(patch, figure, ball, (swirl, spread + 26 / figure.pixels), light, 0)
        cap = ellipse(u, v + 0.05, 0.535, 0.565)
        hair = np.maximum(np.maximum(cap, -_oval(figure, u, v, -0.335, 0.45)), v - 0.02)
        _shadow(patch, figure, u, v, hair, 0.05)
        tie = 0.8 * glow(ball - 0.01, 0.06)
        _paint(patch, figure, hair, _fan(figure, right, v + 0.66, 17), _sheen(u, v, -0.43), tie)


def _braids(canvas: Canvas, figure: Figure) -> None:
    for side in (-1, 1):
        _braid(canvas, figure, side)
    patch, u, v = _crown(canvas, figure, -0.68, 0.16)
    with patch:
        cap = ellipse(u, v + 0.06, 0.545, 0.575)
        hair = np.maximum(np.maximum(cap, -_arch(figure, u, v)), v - 0.10)
        _shadow(patch, figure, u, v, hair)
        start = np.abs(u - 0.35 * figure.turn_sine)
        groove = 0.8 * glow(start, 0.03) * unit(-8 * (v + 0.28))
        strands = _fan(figure, start + 0.02, v + 0.62, 26)
        _paint(patch, figure, hair, strands, _sheen(u, v, -0.42), groove)


def _braid(canvas: Canvas, figure: Figure, side: int) -> None:
    """A chain of knots that hangs from behind the ear, with a band at its end."""
    root = 0.56 * side - 0.16 * figure.turn_sine
    patch, u, v = figure.at(canvas, root, 0.46, 0.19, 0.50)
    with patch:
        v = v + 0.46
        u = (u - (0.06 * side) * v) * side
        knot = (v - 0.02) * 6
        width = (0.078 + 0.034 * _scallops(knot) - 0.02 * v) * unit(0.3 + 9 * v)
        rope = np.maximum(np.abs(u) - width, np.abs(v - 0.39) - 0.37)
        hair = np.minimum(rope, ellipse(u, v - 0.82, 0.07, 0.11))
        slant = knot + np.abs(u) * 6
        groove = 0.9 * (1 - unit(3 * triangle_wave(slant))) * unit((0.76 - v) * 40)
        shine = 0.45 * glow(np.abs(u + 0.02), 0.07)
        _paint(patch, figure, hair, (slant * 4 + u * 12, 46 / figure.pixels), shine, groove)
        band = coverage(rounded_box(u, v - 0.755, 0.075, 0.032, 0.02), figure.pixels)
        patch.paint(band, figure.colors["clothes"][0])


_STYLES: dict[str, Callable[[Canvas, Figure], None]] = {
    "cropped": _cropped,
    "parted": _parted,
    "spiky": _spiky,
    "curly": _curly,
    "bob": _bob,
    "long": _long,
    "bun": _bun,
    "braids": _braids,
}
