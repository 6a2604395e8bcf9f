"""Convert the colors of an image to sRGB: by its ICC profile, a PNG's cICP chunk, or a PNG's gAMA and cHRM chunks."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

from unified_vae.data.sources.base import BadImage

Convert = Callable[[Image.Image], Image.Image]
"""From an image of the mode that the conversion is for to mode RGB."""

SRGB_PRIMARIES = (0.640, 0.330, 0.300, 0.600, 0.150, 0.060)  # x and y of red, green, blue (ITU-R BT.709)
PRIMARIES = {
    1: SRGB_PRIMARIES,
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    12: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
}
"""By their number in ITU-T H.273: BT.709, BT.2020 and P3, all with the white point D65."""

WHITE_D65 = (0.3127, 0.3290)
HDR_TRANSFERS = (16, 18)  # PQ and HLG
SRGB_GAMMA = 2.2  # of the display that a PNG's gAMA is relative to
SAME_LEVELS = 1  # a conversion that changes no color by more is left out: most profiles are sRGB itself

Floats = npt.NDArray[np.float64]


def to_srgb(image: Image.Image, raw: object) -> Convert | None:
    """Return the conversion of an image to sRGB, for its mode; None where it is in sRGB already, or does not say.

    Args:
        raw: the file's bytes, where it was one.

    Raises:
        BadImage: it is an HDR image, which sRGB cannot hold.
    """
    is_png = isinstance(raw, bytes) and raw.startswith(b"\x89PNG")
    if is_png and (cicp := png_chunk(raw, b"cICP")) and len(cicp) == 4:  # type: ignore[arg-type]
        primaries, transfer, matrix, _ = cicp
        if transfer in HDR_TRANSFERS:
            raise BadImage("an HDR image (PQ or HLG in cICP), which sRGB cannot hold")
        if matrix == 0 and primaries in PRIMARIES:
            return _linear_conversion(_decode_transfer(transfer), PRIMARIES[primaries], image.mode)
    if profile := image.info.get("icc_profile"):
        return _profile_conversion(profile, image.mode)
    gamma = image.info.get("gamma")
    if is_png and gamma and "srgb" not in image.info and image.mode in ("L", "RGB"):
        linear = np.linspace(0, 1, 256) ** (1 / gamma)
        chromaticity = image.info.get("chromaticity") or (*WHITE_D65, *SRGB_PRIMARIES)
        if abs(1 / gamma / SRGB_GAMMA - 1) < 0.03:
            linear = _decode_transfer(13)
        return _linear_conversion(linear, tuple(chromaticity[2:]), image.mode, tuple(chromaticity[:2]))
    return None


def png_chunk(raw: bytes, kind: bytes) -> bytes | None:
    """Return the content of the first chunk of a kind before the pixels of a PNG; None without one."""
    position = 8
    while position + 8 <= len(raw):
        length, name = struct.unpack_from(">I4s", raw, position)
        if name == kind:
            return raw[position + 8 : position + 8 + length]
        if name == b"IDAT":
            return None
        position += 12 + length
    return None


def without_text(raw: bytes) -> bytes:
    """Return a PNG without its text and profile, which Pillow refuses where these are large or damaged."""
    if not raw.startswith(b"\x89PNG"):
        return raw
    parts, position = [raw[:8]], 8
    while position + 8 <= len(raw):
        length, name = struct.unpack_from(">I4s", raw, position)
        if name not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf"):
            parts.append(raw[position : position + 12 + length])
        position += 12 + length
    return b"".join(parts)


@lru_cache(maxsize=64)
def _profile_conversion(profile: bytes, mode: str) -> Convert | None:
    """By LittleCMS, relative colorimetric. None for a damaged profile, or one that is sRGB."""
    if mode not in ("L", "RGB", "CMYK"):
        return None
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.NOCACHE,  # threads share it
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None

    def convert(image: Image.Image) -> Image.Image:
        return ImageCms.applyTransform(image, transform) or image

    return None if mode != "CMYK" and _changes_nothing(convert, mode) else convert


def _linear_conversion(
    linear: Floats, primaries: tuple[float, ...], mode: str, white: tuple[float, float] = WHITE_D65
) -> Convert | None:
    """Of levels whose light is `linear` [256] and colors with these primaries and white point (x, y)."""
    if mode not in ("L", "RGB"):
        return None
    matrix = np.linalg.inv(_to_xyz(SRGB_PRIMARIES, WHITE_D65)) @ _to_xyz(primaries, white)
    matrix /= matrix.sum(1, keepdims=True)  # white stays white

    def convert(image: Image.Image) -> Image.Image:
        light = linear[np.asarray(image.convert("RGB"))]
        if mode == "RGB":
            light = light @ matrix.T
        light = light.clip(0, 1)
        encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
        return Image.fromarray(np.rint(255 * encoded).astype(np.uint8))

    return None if _changes_nothing(convert, mode) else convert


def _changes_nothing(convert: Convert, mode: str) -> bool:
    """Whether a conversion leaves a set of grays and colors as they are, but for rounding."""
    levels = np.linspace(0, 255, 18).astype(np.uint8)
    colors = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(18, -1, 3)
    test = Image.fromarray(colors if mode == "RGB" else colors[..., 0])
    before = np.asarray(test.convert("RGB")).astype(int)
    return int(np.abs(np.asarray(convert(test)).astype(int) - before).max()) <= SAME_LEVELS


def _decode_transfer(number: int) -> Floats:
    """The light [256] of 8-bit levels, by the transfer function's number in ITU-T H.273; sRGB where it is unknown."""
    levels = np.linspace(0, 1, 256)
    powers: Mapping[int, float] = {4: 2.2, 5: 2.8, 8: 1.0}
    if number in powers:
        return levels ** powers[number]
    return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)


def _to_xyz(primaries: tuple[float, ...], white: tuple[float, float]) -> Any:
    """The matrix [3, 3] from linear RGB to XYZ (SMPTE RP 177)."""
    x, y = np.array(primaries[0::2]), np.array(primaries[1::2])
    columns = np.stack([x / y, np.ones(3), (1 - x - y) / y])
    target = np.array([white[0] / white[1], 1.0, (1 - white[0] - white[1]) / white[1]])
    return columns * np.linalg.solve(columns, target)
