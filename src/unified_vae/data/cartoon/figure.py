"""One chunk of faces as numbers to draw with: pose, places on the turned head, colors.

The head is a ball in the middle and a flat picture at the rim: what sits on its front (eyes, nose,
mouth) is placed by turning a sphere, so that a turned face is foreshortened on its far side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from unified_vae.data.cartoon import palette as palette
from unified_vae.data.cartoon.canvas import Array, Canvas, Patch, Rows, ellipse

VARIATIONS = (
    "turn", "tilt", "across", "down", "scale", "width", "jaw", "eye_size", "mouth_width",
    "hair", "part", "pattern", "pattern_scale", "rims", "metal", "strands",
)  # fmt: skip
"""Small differences between faces that carry no label."""

HEAD_WIDTH, HEAD_HEIGHT = 0.50, 0.56  # half the head, in head units
_POSE = ("x", "y", "scale", "pixels", "body_pixels", "cosine", "sine", "turn_cosine", "turn_sine")
_NECK_Y = 0.515  # where the head pivots, in the picture


@dataclass(frozen=True)
class Figure:
    """Arrays of shape [n, 1, 1] unless said otherwise, in head units: the head is 1 wide.

    Attributes:
        rows: which pictures of the canvas these are.
        values: attribute -> number of its value, [n].
        names: attribute -> the values' names.
        variations: name -> number in [-1, 1).
        x, y: the head's middle in the picture.
        scale: picture units per head unit.
        pixels: pixels per head unit.
        body_pixels: pixels per picture unit.
        cosine, sine: of the head's tilt.
        turn_cosine, turn_sine: of the head's turn; positive looks to the picture's right.
        colors: name -> [shades, 3, n, 1, 1].
    """

    rows: Rows
    values: dict[str, npt.NDArray[np.int64]]
    names: dict[str, list[str]]
    variations: dict[str, Array]
    x: Array
    y: Array
    scale: Array
    pixels: Array
    body_pixels: Array
    cosine: Array
    sine: Array
    turn_cosine: Array
    turn_sine: Array
    colors: dict[str, Array]

    @classmethod
    def of(
        cls,
        values: dict[str, npt.NDArray[np.int64]],
        variations: dict[str, npt.NDArray[np.float64]],
        names: dict[str, list[str]],
        size: int,
    ) -> Figure:
        """Work out the pose and the colors of a chunk of faces."""
        vary = {name: (2 * v - 1).astype(np.float32)[:, None, None] for name, v in variations.items()}
        side = {name: (values[name] - 1).astype(np.float32)[:, None, None] for name in ("turn", "tilt")}
        cosine, sine = _rotation(side["tilt"] * 0.105 + vary["tilt"] * 0.025)
        turn_cosine, turn_sine = _rotation(side["turn"] * 0.155 + vary["turn"] * 0.025)
        scale = 0.96 + 0.035 * vary["scale"]
        reach = 0.5 * scale  # from the pivot in the neck to the head's middle
        return cls(
            rows=slice(0, len(values["turn"])),
            values=values,
            names=names,
            variations=vary,
            x=0.05 * vary["across"] + reach * sine,
            y=_NECK_Y + 0.03 * vary["down"] - reach * cosine,
            scale=scale,
            pixels=scale * (size / 2),
            body_pixels=np.full_like(scale, size / 2),
            cosine=cosine,
            sine=sine,
            turn_cosine=turn_cosine,
            turn_sine=turn_sine,
            colors=_colors(values, variations),
        )

    def __len__(self) -> int:
        return len(self.values["turn"])

    def only(self, attribute: str, *wanted: str) -> Figure:
        """Those of the faces whose attribute has one of these values."""
        numbers = self.values[attribute]
        match = numbers == self.names[attribute].index(wanted[0])
        for value in wanted[1:]:
            match |= numbers == self.names[attribute].index(value)
        return self if match.all() else self.take(np.flatnonzero(match))

    def has(self, attribute: str, value: str) -> Array:
        """1 for the faces that have the value, 0 for the others, [n, 1, 1]."""
        return (self.values[attribute] == self.names[attribute].index(value)).astype(np.float32)[:, None, None]

    def take(self, chosen: npt.NDArray[np.int64]) -> Figure:
        """Some of the faces."""
        rows = np.arange(self.rows.start, self.rows.stop) if isinstance(self.rows, slice) else self.rows
        return replace(
            self,
            rows=_rows(rows[chosen]),
            values={name: v[chosen] for name, v in self.values.items()},
            variations={name: v[chosen] for name, v in self.variations.items()},
            colors={name: c[:, :, chosen] for name, c in self.colors.items()},
            **{name: getattr(self, name)[chosen] for name in _POSE},
        )

    def at(
        self, canvas: Canvas, u: Array | float, v: Array | float, reach_u: Array | float, reach_v: float
    ) -> tuple[Patch, Array, Array]:
        """The pixels round the place (u, v) of the head, and their places relative to it.

        Returns:
            The patch and the arrays u, v [n, height, width] in head units, turned with the head.
        """
        x = self.x + self.scale * (u * self.cosine - v * self.sine)
        y = self.y + self.scale * (u * self.sine + v * self.cosine)
        slant = np.abs(self.sine)
        reach_x = self.scale * (reach_u * self.cosine + reach_v * slant)
        reach_y = self.scale * (reach_u * slant + reach_v * self.cosine)
        patch = canvas.near(self.rows, x, y, reach_x, reach_y)
        right, down = (patch.x - x) / self.scale, (patch.y - y) / self.scale
        return patch, right * self.cosine + down * self.sine, down * self.cosine - right * self.sine

    def at_both(
        self, canvas: Canvas, a: float, bulge: float, v: Array | float, reach_u: float, reach_v: float
    ) -> tuple[Patch, Array, Array, Array]:
        """The pixels round the places (-a, v) and (a, v) of the face, each relative to the nearer one.

        Returns:
            The patch; the distance outwards and down from the nearer place, in units that are foreshortened
            with the face; and the side, -1 or 1, of each pixel.
        """
        (left, left_narrow), (right, right_narrow) = self.front(-a, bulge), self.front(a, bulge)
        half = (right - left) / 2
        patch, u, v = self.at(canvas, (left + right) / 2, v, reach_u + half, reach_v)
        side = np.copysign(np.float32(1), u)
        narrow = (left_narrow + right_narrow) / 2 + side * ((right_narrow - left_narrow) / 2)
        return patch, (np.abs(u) - half) / narrow, v, side

    def front(self, a: float, bulge: float = 1.0) -> tuple[Array, Array]:
        """Where a point of the face lies once the head is turned.

        Args:
            a: place across the face, -1 (rim) to 1 (rim).
            bulge: distance from the head's axis; the nose stands out (above 1).

        Returns:
            The place u in head units, and how much narrower things look there.
        """
        depth = math.sqrt(1 - a * a)
        place = HEAD_WIDTH * bulge * (a * self.turn_cosine + depth * self.turn_sine)
        narrowing = self.turn_cosine - (a / depth) * self.turn_sine
        return place, np.minimum(narrowing, 1)

    def head_distance(self, u: Array, v: Array) -> Array:
        """Signed distance to the head's outline: an ellipse, narrower towards the chin."""
        width = HEAD_WIDTH * (1 + 0.03 * self.variations["width"])
        low = np.maximum(v * (1 / HEAD_HEIGHT), 0)
        narrow = 1 + (0.11 + 0.07 * self.variations["jaw"]) * low * low
        return ellipse(u * narrow, v, width, HEAD_HEIGHT)


def _rows(rows: npt.NDArray[np.int64]) -> Rows:
    """Rows as a slice where they lie side by side, which the canvas copies faster."""
    if rows.size and int(rows[-1] - rows[0]) + 1 == rows.size:
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows


def _rotation(half_tangent: Array) -> tuple[Array, Array]:
    """Cosine and sine from the tangent of half the angle: no transcendental function, the same anywhere."""
    square = half_tangent * half_tangent
    return (1 - square) / (1 + square), 2 * half_tangent / (1 + square)


def _colors(
    values: dict[str, npt.NDArray[np.int64]], variations: dict[str, npt.NDArray[np.float64]]
) -> dict[str, Array]:
    def shades(chosen: Array) -> Array:  # [n, shades, 3] -> [shades, 3, n, 1, 1]
        return np.ascontiguousarray(chosen.transpose(1, 2, 0))[..., None, None]

    rims = (variations["rims"] * len(palette.RIMS)).astype(np.int64)
    metal = (variations["metal"] * len(palette.METAL)).astype(np.int64)
    return {
        "skin": shades(palette.table(palette.SKIN)[values["skin"]]),
        "hair": shades(palette.table(palette.HAIR)[values["hair_colour"]]),
        "eye": shades(palette.table(palette.EYE)[values["eye_colour"]]),
        "clothes": shades(palette.table(palette.CLOTHES)[values["clothes_colour"]]),
        "backdrop": shades(palette.table(palette.BACKDROP)[values["backdrop_colour"]]),
        "rims": shades(palette.RIMS[rims][:, None]),
        "metal": shades(palette.METAL[metal]),
    }
