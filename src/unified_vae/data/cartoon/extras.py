"""What some faces have: moustache, beard, glasses, earrings."""

from __future__ import annotations

import numpy as np

from unified_vae.data.cartoon import palette as palette
from unified_vae.data.cartoon.canvas import (
    Array,
    Canvas,
    Patch,
    arc,
    circle,
    coverage,
    ellipse,
    glow,
    line_coverage,
    noise,
    rounded_box,
    segment,
    unit,
)
from unified_vae.data.cartoon.features import EYE_LINE, EYE_PLACE, MOUTH_LINE, NOSE_LINE, color, ear_place
from unified_vae.data.cartoon.figure import Figure

_LENS_PLACE = 1.02 * EYE_PLACE


def draw_beard(canvas: Canvas, figure: Figure) -> None:
    """Moustache or full beard, in strands of the hair's color."""
    beard = figure.only("facial_hair", "beard")
    if len(beard):
        _full_beard(canvas, beard)
    either = figure.only("facial_hair", "moustache", "beard")
    if len(either):
        _moustache(canvas, either)


def _full_beard(canvas: Canvas, figure: Figure) -> None:
    patch, u, v = figure.at(canvas, 0.0, 0.32, 0.56, 0.34)
    with patch:
        v = v + 0.32
        middle, _ = figure.front(0.0, bulge=0.92)
        ragged = 0.012 * noise(u * 26 + 30, 26 / figure.pixels)
        chin = figure.head_distance(u, v - 0.045) - 0.012 + ragged
        face = ellipse(u - 0.8 * middle, v + 0.02, 0.425, 0.355) + ragged
        lips = rounded_box(u - middle, v - (MOUTH_LINE + 0.01), 0.165, 0.075, 0.07)
        beard = np.maximum(np.maximum(chin, -face), np.maximum(-lips, 0.02 - v))
        _hairs(patch, figure, beard, (u - middle) / (v + 0.45), 34)


def _moustache(canvas: Canvas, figure: Figure) -> None:
    place, narrow = figure.front(0.0, bulge=0.95)
    patch, u, v = figure.at(canvas, place, (NOSE_LINE + MOUTH_LINE) / 2 + 0.018, 0.24, 0.12)
    with patch:
        side = np.abs(u) / narrow
        distance, along = arc(side - 0.085, v, 0.095, 3.2)
        tip = np.maximum(along, 0)
        moustache = distance - 0.048 * (1 - 0.62 * tip * tip)
        patch.paint(0.6 * glow(moustache, 0.035), 0.85 * figure.colors["skin"][2])
        _hairs(patch, figure, moustache, side + 0.6 * v, 60)


def _hairs(patch: Patch, figure: Figure, hair: Array, flow: Array, strands: int) -> None:
    light, base, dark = figure.colors["hair"]
    footprint = 1.2 * strands / figure.pixels
    tone = noise(flow * strands + 40, footprint) + 0.6 * noise(flow * (2.3 * strands) + 90, 2.3 * footprint)
    tone -= 0.9 * glow(-hair, 0.03)
    shape = coverage(hair, figure.pixels)
    patch.paint(shape, base + 0.4 * (dark - base))  # a beard is darker than the hair
    patch.paint(shape * unit(tone * 0.30), light)
    patch.paint(shape * unit(tone * -0.55), dark)


def draw_glasses(canvas: Canvas, figure: Figure) -> None:
    """Rims, lenses with a glint, bridge and temples."""
    chosen = figure.only("glasses", "round", "square")
    if len(chosen):
        _bridge(canvas, chosen)
    for name in ("round", "square"):
        chosen = figure.only("glasses", name)
        if len(chosen):
            _lenses(canvas, chosen, is_round=name == "round")


def _bridge(canvas: Canvas, figure: Figure) -> None:
    """The bow over the nose and the temples to the ears."""
    patch, u, v = figure.at(canvas, 0.0, EYE_LINE, 0.66, 0.10)
    with patch:
        (left, left_narrow), (right, right_narrow) = (figure.front(a) for a in (-_LENS_PLACE, _LENS_PLACE))
        inner, outer = left + 0.16 * left_narrow, right - 0.16 * right_narrow
        distance, _ = arc(u - (inner + outer) / 2, v + 0.035, (outer - inner) / 2, 4.0)
        for side, lens, narrow in ((-1, left, left_narrow), (1, right, right_narrow)):
            start = lens + (0.185 * side) * narrow
            length = np.maximum(side * (ear_place(figure, side) - start), 0.001)  # a far ear is hidden
            temple = segment((u - start) * side, v + 0.05, length, 0.05 * unit(length * 20))
            distance = np.minimum(distance, temple)
        patch.paint(line_coverage(distance, 0.0145, figure.pixels), figure.colors["rims"][0])


def _lenses(canvas: Canvas, figure: Figure, is_round: bool) -> None:
    patch, out, v, side = figure.at_both(canvas, _LENS_PLACE, 1.0, EYE_LINE, 0.22, 0.22)
    with patch:
        lens = circle(out, v, 0.188) if is_round else rounded_box(out, v - 0.01, 0.185, 0.145, 0.045)
        glint = coverage(np.abs(out * side + 0.75 * v + 0.03) - 0.03, figure.pixels)
        patch.paint(coverage(lens, figure.pixels) * (0.12 + 0.28 * glint), color(palette.WHITE))
        patch.paint(line_coverage(np.abs(lens), 0.0185, figure.pixels), figure.colors["rims"][0])
        shine = np.maximum(np.abs(lens + 0.004), v + 0.06)
        patch.paint(0.5 * line_coverage(shine, 0.005, figure.pixels), color(palette.WHITE))


def draw_earrings(canvas: Canvas, figure: Figure) -> None:
    """Studs with a sparkle, or hoops."""
    for name, jewel in (("studs", _stud), ("hoops", _hoop)):
        chosen = figure.only("earrings", name)
        for side in (-1, 1) if len(chosen) else ():
            jewel(canvas, chosen, side)


def _stud(canvas: Canvas, figure: Figure, side: int) -> None:
    light, dark = figure.colors["metal"]
    patch, u, v = figure.at(canvas, ear_place(figure, side) + 0.03 * side, 0.205, 0.09, 0.09)
    with patch:
        away = np.sqrt(u * u + v * v)
        patch.paint(coverage(away - 0.052, figure.pixels), dark)
        patch.paint(coverage(away - 0.036, figure.pixels), light)
        sparkle = line_coverage(circle(u + 0.012, v + 0.014, 0.0), 0.015, figure.pixels)
        patch.paint(sparkle, color(palette.WHITE))


def _hoop(canvas: Canvas, figure: Figure, side: int) -> None:
    light, dark = figure.colors["metal"]
    patch, u, v = figure.at(canvas, ear_place(figure, side) + 0.035 * side, 0.30, 0.13, 0.15)
    with patch:
        ring = np.abs(ellipse(u, v, 0.085, 0.105))
        patch.paint(line_coverage(ring, 0.022, figure.pixels), dark)
        patch.paint(line_coverage(ring, 0.013, figure.pixels) * unit(0.5 - (u + v) * 6), light)
