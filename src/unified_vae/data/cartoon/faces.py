"""The built-in image set: cartoon faces with known attributes, drawn from a seed at any size.

Picture i is a function of (seed, i) alone, and the same scene at every size. The attributes are
independent of one another, so the set also serves where the factors of variation must be known
(dSprites and 3D Shapes do the same for simpler scenes; Kim & Mnih, ICML 2018).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unified_vae.core.rng import key, uniforms
from unified_vae.data.cartoon import palette as palette
from unified_vae.data.cartoon.canvas import Canvas
from unified_vae.data.cartoon.clothes import draw_backdrop, draw_body, draw_collar
from unified_vae.data.cartoon.extras import draw_beard, draw_earrings, draw_glasses
from unified_vae.data.cartoon.features import (
    draw_brows,
    draw_cheeks,
    draw_ears,
    draw_eyes,
    draw_freckles,
    draw_head,
    draw_mouth,
    draw_nose,
)
from unified_vae.data.cartoon.figure import VARIATIONS, Figure
from unified_vae.data.cartoon.hair import draw_hair_behind, draw_hair_in_front

ATTRIBUTE_NAMES: dict[str, list[str]] = {
    "turn": ["left", "ahead", "right"],
    "tilt": ["left", "upright", "right"],
    "skin": list(palette.SKIN),
    "hair_style": ["cropped", "parted", "spiky", "curly", "bob", "long", "bun", "braids"],
    "hair_colour": list(palette.HAIR),
    "eye_colour": list(palette.EYE),
    "eyes": ["open", "narrow"],
    "gaze": ["left", "ahead", "right"],
    "brows": ["raised", "flat", "stern", "worried"],
    "mouth": ["frown", "straight", "smile", "grin", "surprised"],
    "glasses": ["none", "round", "square"],
    "facial_hair": ["none", "moustache", "beard"],
    "freckles": ["no", "yes"],
    "earrings": ["none", "studs", "hoops"],
    "clothes": ["tee", "breton", "shirt", "hoodie", "jumper"],
    "clothes_colour": list(palette.CLOTHES),
    "backdrop": ["plain", "gradient", "stripes", "dots", "rays"],
    "backdrop_colour": list(palette.BACKDROP),
}
"""The values of each attribute, in the order of their numbers."""

_OFTEN_NONE = ("glasses", "facial_hair", "earrings")  # half of the faces go without; the rest share evenly
_PIXELS_AT_ONCE = 24 * 64 * 64  # a chunk's arrays then stay in the processor's cache


@dataclass(frozen=True)
class FaceFactors:
    """All that decides how faces look.

    Attributes:
        values: attribute -> numbers of its values, int64 [n]; see ATTRIBUTE_NAMES.
        variations: small differences that carry no label -> float64 [n] in [0, 1); see VARIATIONS.
    """

    values: dict[str, npt.NDArray[np.int64]]
    variations: dict[str, npt.NDArray[np.float64]]

    def __len__(self) -> int:
        return len(self.values["turn"])

    def with_value(self, attribute: str, value: str) -> FaceFactors:
        """The same faces, all with one value of one attribute."""
        number = ATTRIBUTE_NAMES[attribute].index(value)
        return FaceFactors({**self.values, attribute: np.full_like(self.values[attribute], number)}, self.variations)

    def take(self, rows: npt.NDArray[np.int64]) -> FaceFactors:
        """Some of the faces, in the order asked for."""
        return FaceFactors(
            {name: numbers[rows] for name, numbers in self.values.items()},
            {name: numbers[rows] for name, numbers in self.variations.items()},
        )


def face_factors(seed: int, indices: npt.ArrayLike) -> FaceFactors:
    """The factors of the faces with these numbers, shape [n]; a pure function of (seed, index)."""
    choices = uniforms(key(seed, "faces", "attributes"), indices, len(ATTRIBUTE_NAMES))
    drifts = uniforms(key(seed, "faces", "variations"), indices, len(VARIATIONS))
    return FaceFactors(
        {name: _choose(name, choices[:, column]) for column, name in enumerate(ATTRIBUTE_NAMES)},
        {name: drifts[:, column] for column, name in enumerate(VARIATIONS)},
    )


def face_attributes(seed: int, indices: npt.ArrayLike) -> dict[str, npt.NDArray[np.int64]]:
    """The labels of the faces with these numbers: attribute -> int64 [n]."""
    return face_factors(seed, indices).values


def draw_faces(seed: int, indices: npt.ArrayLike, size: int) -> npt.NDArray[np.uint8]:
    """The faces with these numbers.

    Args:
        seed: names the set.
        indices: shape [n], any order, any numbers from 0 up.
        size: pixels on a side.

    Returns:
        uint8 [n, size, size, 3], RGB.
    """
    return draw_factors(face_factors(seed, indices), size)


def draw_factors(factors: FaceFactors, size: int) -> npt.NDArray[np.uint8]:
    """Faces with these factors: uint8 [n, size, size, 3], RGB."""
    pictures = np.empty((len(factors), size, size, 3), dtype=np.uint8)
    alike = np.argsort(factors.values["hair_style"], kind="stable")  # one style is drawn in one go
    chunk = max(1, _PIXELS_AT_ONCE // (size * size))
    for start in range(0, len(factors), chunk):
        rows = alike[start : start + chunk]
        pictures[rows] = _draw_chunk(factors.take(rows), size)
    return pictures


def _choose(attribute: str, uniform: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    count = len(ATTRIBUTE_NAMES[attribute])
    if attribute in _OFTEN_NONE:
        return np.ceil(np.maximum(2 * uniform - 1, 0) * (count - 1)).astype(np.int64)
    return (uniform * count).astype(np.int64)


def _draw_chunk(factors: FaceFactors, size: int) -> npt.NDArray[np.uint8]:
    """From back to front."""
    canvas = Canvas(len(factors), size)
    figure = Figure.of(factors.values, factors.variations, ATTRIBUTE_NAMES, size)
    for draw in (
        draw_backdrop,
        draw_hair_behind,
        draw_body,
        draw_ears,
        draw_head,
        draw_cheeks,
        draw_freckles,
        draw_nose,
        draw_eyes,
        draw_beard,
        draw_mouth,
        draw_collar,
        draw_hair_in_front,
        draw_brows,
        draw_glasses,
        draw_earrings,
    ):
        draw(canvas, figure)
    return canvas.pixels()
