"""The colors of the built-in faces, chosen to sit well together."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def _colors(*rows: str) -> npt.NDArray[np.float32]:
    """Rows of '#rrggbb #rrggbb ...' as [rows, colors, 3] in [0, 1]."""
    return np.array(
        [[[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in row.split()] for row in rows], dtype=np.float32
    )


# light, base, shade, blush
SKIN = {
    "porcelain": "#fff0e6 #fcdccb #e9aa96 #f58d88",
    "peach": "#ffdfc4 #f7c4a0 #d98f6c #ee7a66",
    "honey": "#f6cb98 #e6ac73 #bb7845 #db6a4c",
    "caramel": "#dda672 #c68850 #935832 #bd5136",
    "cinnamon": "#b57b50 #9a6039 #693a20 #993c28",
    "cocoa": "#925f44 #774931 #48281a #83301f",
}

# light, base, dark
HAIR = {
    "black": "#626a88 #2b2c3b #15151f",
    "brown": "#a86c46 #613620 #371c12",
    "ginger": "#ffae5c #d8692a #983f17",
    "blond": "#ffefad #ecc35c #b98630",
    "silver": "#ffffff #ccd2dc #8f97a8",
    "pink": "#ffc8dc #ee7ba6 #b54677",
    "blue": "#8bd6f2 #3a86c8 #23548f",
}

# light, dark
EYE = {"brown": "#b8733a #4d2611", "blue": "#6cc3f7 #1d57a5", "green": "#86d46a #24703f", "grey": "#b9c6d3 #566577"}

# base, shade, trim
CLOTHES = {
    "red": "#e2564f #ae3438 #ffe3cf",
    "mustard": "#f0b23c #c58121 #fff3d6",
    "green": "#4c9f70 #2f7353 #e6f4d8",
    "navy": "#35507f #22345b #dfe8f7",
    "violet": "#8d67ab #644586 #f1e2fa",
    "cream": "#f6ead8 #d3bfa3 #b5653f",
}

# light, base, deep
BACKDROP = {
    "sky": "#d9f0fb #a9d8f0 #6fb4dc",
    "mint": "#d8f3e2 #a5dec0 #67bb95",
    "lemon": "#fff6cf #fae295 #edc253",
    "coral": "#ffe2d8 #fcb8a4 #ef8a75",
    "lilac": "#ece2fa #cdb8ec #a187d2",
    "slate": "#a9b4c6 #7c8aa3 #536079",
}

RIMS = _colors("#26242f", "#7d3b22", "#b3303f", "#27477d")[:, 0]
METAL = _colors("#ffdf7e #d79a2b", "#f4f7fb #9fadc0")

WHITE = np.array([1.0, 1.0, 1.0], dtype=np.float32)
EYE_WHITE = _colors("#fdfbf7 #cdd0e0")[0]
LASH = _colors("#2a1c22")[0, 0]
MOUTH = _colors("#6d1f2b #d9606a #ffffff")[0]  # inside, tongue, teeth


def table(colors: dict[str, str]) -> npt.NDArray[np.float32]:
    """The palette as [values, shades, 3] in [0, 1]."""
    return _colors(*colors.values())
