"""The face itself: head, ears, cheeks, freckles, nose, eyes, brows, mouth."""

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
    segment,
    spot,
    unit,
)
from unified_vae.data.cartoon.figure import Figure

EYE_PLACE, EYE_LINE = 0.44, 0.03  # across (part of the head's half width) and down (head units)
NOSE_LINE, MOUTH_LINE = 0.17, 0.335
_EARS_SHOW = ("cropped", "parted", "spiky", "curly", "bun", "braids")


def draw_ears(canvas: Canvas, figure: Figure) -> None:
    """Behind the head; the far ear of a turned head nearly disappears."""
    chosen = figure.only("hair_style", *_EARS_SHOW)
    for side in (-1, 1) if len(chosen) else ():
        _, base, shade, _ = chosen.colors["skin"]
        patch, u, v = chosen.at(canvas, ear_place(chosen, side), 0.07, 0.16, 0.2)
        with patch:
            lean = u + (0.25 * side) * v
            patch.paint(coverage(ellipse(lean, v, 0.10, 0.135), chosen.pixels), base)
            patch.paint(0.7 * coverage(ellipse(lean - 0.015 * side, v, 0.055, 0.085), chosen.pixels), shade)
            patch.paint(0.8 * coverage(ellipse(lean, v - 0.02, 0.038, 0.06), chosen.pixels), base)


def ear_place(figure: Figure, side: int) -> Array:
    """Where an ear (-1 left, 1 right, in the picture) sits across the head."""
    return side * 0.505 - 0.14 * figure.turn_sine


def draw_head(canvas: Canvas, figure: Figure) -> None:
    """Skin, lit from the upper left."""
    patch, u, v = figure.at(canvas, 0.0, 0.0, 0.56, 0.6)
    with patch:
        light, base, shade, _ = figure.colors["skin"]
        distance = figure.head_distance(u, v)
        shape = coverage(distance, figure.pixels)
        tone = 0.62 * u + 0.42 * v
        patch.paint(shape, base)
        patch.paint(shape * unit(0.18 - 1.8 * tone), light)
        patch.paint(shape * unit(0.95 * unit(tone - 0.02) + 0.4 * glow(-distance, 0.10)), shade)


def draw_cheeks(canvas: Canvas, figure: Figure) -> None:
    """Blush."""
    patch, out, v, _ = figure.at_both(canvas, 0.52, 0.95, 0.205, 0.16, 0.12)
    with patch:
        patch.paint(0.6 * spot(out, v, 0.14, 0.115), figure.colors["skin"][3])


_FRECKLES = (  # across and down the face, radius
    (-0.62, 0.135, 0.018), (-0.50, 0.165, 0.021), (-0.37, 0.140, 0.017), (-0.56, 0.215, 0.020),
    (-0.43, 0.225, 0.018), (-0.30, 0.195, 0.020), (-0.69, 0.190, 0.017), (-0.12, 0.085, 0.017),
    (0.02, 0.110, 0.019), (0.13, 0.075, 0.016), (0.31, 0.185, 0.019), (0.42, 0.150, 0.020),
    (0.53, 0.175, 0.018), (0.46, 0.230, 0.019), (0.60, 0.220, 0.021), (0.66, 0.150, 0.017),
    (0.34, 0.240, 0.016), (0.71, 0.200, 0.018), (-0.34, 0.255, 0.016),
)  # fmt: skip


def draw_freckles(canvas: Canvas, figure: Figure) -> None:
    """Small dots over nose and cheeks."""
    chosen = figure.only("freckles", "yes")
    if not len(chosen):
        return
    middle, _ = chosen.front(0.0)
    patch, u, v = chosen.at(canvas, middle, 0.165, 0.46, 0.13)
    with patch:
        nearest: Array | None = None
        for across, down, radius in _FRECKLES:
            place, narrow = chosen.front(across)
            right, below = ((u + (middle - place)) * (1 / (radius * narrow)), (v + (0.165 - down)) * (1 / radius))
            square = right * right + below * below
            nearest = square if nearest is None else np.minimum(nearest, square, out=nearest)
        assert nearest is not None
        dots = line_coverage(np.sqrt(nearest) * 0.018, 0.018, chosen.pixels)
        patch.paint(0.95 * dots, 0.66 * chosen.colors["skin"][2])


def draw_nose(canvas: Canvas, figure: Figure) -> None:
    """A soft shadow beside, a line below, a light on the tip."""
    light, _, shade, _ = figure.colors["skin"]
    place, _ = figure.front(0.0, bulge=1.12)
    patch, u, v = figure.at(canvas, place, 0.14, 0.14, 0.12)
    with patch:
        patch.paint(0.55 * spot(u - 0.02, v - 0.03, 0.10, 0.09), shade)
        distance, _ = arc(u, v - 0.058, 0.058, -5.0)
        patch.paint(0.9 * line_coverage(distance, 0.013, figure.pixels), 0.88 * shade)
        patch.paint(0.85 * spot(u + 0.012, v + 0.015, 0.055, 0.06), light)


def draw_eyes(canvas: Canvas, figure: Figure) -> None:
    """Whites, irises, pupils, lights, lids and lashes."""
    patch, out, v, side = figure.at_both(canvas, EYE_PLACE, 1.0, EYE_LINE, 0.19, 0.19)
    with patch:
        big = 1 + 0.06 * figure.variations["eye_size"]
        out, v = out / big, v / big
        narrow = figure.has("eyes", "narrow")
        lowered = v - 0.018 * narrow
        height = 0.128 - 0.066 * narrow
        white = ellipse(out, lowered, 0.128, height)
        shape = coverage(white, figure.pixels)
        bright, dim = (color(c) for c in palette.EYE_WHITE)
        patch.paint(0.45 * glow(white, 0.05), figure.colors["skin"][2])
        patch.paint(shape, bright + unit(0.1 - lowered * 8) * (dim - bright))
        gaze = figure.has("gaze", "right") - figure.has("gaze", "left")
        _iris(patch, figure, out * side - 0.056 * gaze, v - 0.008 - 0.008 * narrow, shape)
        _lid(patch, figure, out, lowered, height, white)


def _iris(patch: Patch, figure: Figure, right: Array, down: Array, shape: Array) -> None:
    light, dark = figure.colors["eye"]
    away = np.sqrt(right * right + down * down)
    mix = unit(0.45 + down * 7) * (1 - glow(0.088 - away, 0.026))
    patch.paint(shape * coverage(away - 0.088, figure.pixels), dark + mix * (light - dark))
    patch.paint(shape * coverage(away - 0.043, figure.pixels), 0.6 * color(palette.LASH))
    catch = coverage(circle(right + 0.034, down + 0.036, 0.028), figure.pixels)
    small = line_coverage(circle(right - 0.038, down - 0.036, 0.0), 0.014, figure.pixels)
    patch.paint(shape * np.maximum(catch, 0.8 * small), color(palette.WHITE))


def _lid(patch: Patch, figure: Figure, out: Array, v: Array, height: Array, white: Array) -> None:
    shade = figure.colors["skin"][2]
    rim = np.abs(white)
    lower = line_coverage(np.maximum(rim, -v), 0.006, figure.pixels)
    crease = line_coverage(np.maximum(np.abs(white - 0.042), v + 0.45 * height), 0.008, figure.pixels)
    patch.paint(np.maximum(0.6 * lower, 0.75 * crease), 0.82 * shade)
    lashes = line_coverage(rim, 0.021 * unit(0.55 - v / height), figure.pixels)
    for root, rise, far, up in ((0.112, 0.40, 0.055, -0.022), (0.086, 0.72, 0.046, -0.044)):
        lash = line_coverage(segment(out - root, v + rise * height, far, up), 0.009, figure.pixels)
        lashes = np.maximum(lashes, lash)
    patch.paint(lashes, color(palette.LASH))


_BROWS = {  # height (head units), slope towards the outside, bend
    "raised": (-0.225, 0.10, 1.7),
    "flat": (-0.160, 0.0, 0.1),
    "stern": (-0.140, -0.42, 0.3),
    "worried": (-0.180, 0.42, 0.3),
}


def draw_brows(canvas: Canvas, figure: Figure) -> None:
    """Above the hair, as in drawn films, so that a fringe does not hide them."""
    kinds = np.array([_BROWS[name] for name in figure.names["brows"]], dtype=np.float32)
    rise, slope, bend = kinds[figure.values["brows"]].T[..., None, None]
    _, base, dark = figure.colors["hair"]
    patch, out, v, _ = figure.at_both(canvas, EYE_PLACE * 1.02, 1.0, rise, 0.19, 0.12)
    with patch:
        distance, along = arc(out, v - slope * out, 0.125, bend)
        outer = along + 1
        thickness = 0.032 - 0.0045 * outer * outer
        patch.paint(coverage(distance - thickness, figure.pixels), base + 0.65 * (dark - base))


def draw_mouth(canvas: Canvas, figure: Figure) -> None:
    """From frown to grin."""
    for shape, names in _MOUTHS.items():
        chosen = figure.only("mouth", *names)
        if len(chosen):
            place, narrow = chosen.front(0.0, bulge=0.92)
            patch, u, v = chosen.at(canvas, place, MOUTH_LINE, 0.24, 0.14)
            with patch:
                shape(patch, chosen, u / (narrow * (1 + 0.10 * chosen.variations["mouth_width"])), v)


def _lips(patch: Patch, figure: Figure, u: Array, v: Array) -> None:
    """A closed mouth: a line that bends up or down, thicker in the middle, with a soft lower lip."""
    lip = 0.45 * figure.colors["skin"][3] + 0.55 * color(palette.MOUTH[1])
    bend = 2.8 * (figure.has("mouth", "frown") - figure.has("mouth", "smile"))
    middle = v + 0.012 * bend
    below, along = arc(u, middle - 0.022, 0.10, bend)
    patch.paint(0.9 * coverage(below - (0.026 - 0.016 * along * along), figure.pixels), lip)
    distance, along = arc(u, middle, 0.15, bend)
    line = coverage(distance - (0.022 - 0.008 * along * along), figure.pixels)
    patch.paint(line, color(palette.MOUTH[0]))


def _grin(patch: Patch, figure: Figure, u: Array, v: Array) -> None:
    inside, tongue, teeth = (color(c) for c in palette.MOUTH)
    top = v + 0.055 + 1.3 * u * u
    bottom = v - 0.115 + 4.8 * u * u
    mouth = np.maximum(-top, bottom * 0.62)
    shape = coverage(mouth, figure.pixels)
    patch.paint(coverage(mouth - 0.014, figure.pixels), 0.72 * figure.colors["skin"][3])
    patch.paint(shape, inside)
    patch.paint(shape * coverage(ellipse(u, v - 0.10, 0.085, 0.055), figure.pixels), tongue)
    patch.paint(shape * coverage(top - 0.062, figure.pixels), teeth)


def _round(patch: Patch, figure: Figure, u: Array, v: Array) -> None:
    inside, tongue, _ = (color(c) for c in palette.MOUTH)
    hole = ellipse(u, v - 0.02, 0.068, 0.088)
    shape = coverage(hole, figure.pixels)
    patch.paint(coverage(hole - 0.024, figure.pixels), 0.85 * figure.colors["skin"][3])
    patch.paint(shape, inside)
    patch.paint(shape * coverage(ellipse(u, v - 0.09, 0.05, 0.045), figure.pixels), tongue)


_MOUTHS = {_lips: ("frown", "straight", "smile"), _grin: ("grin",), _round: ("surprised",)}


def color(rgb: Array) -> Array:
    """One color for all pictures: [3] -> [3, 1, 1, 1]."""
    return rgb[:, None, None, None]
