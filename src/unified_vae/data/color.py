"""Convert the colors of an image to sRGB by its ICC profile; list HDR images, which a PNG's cICP chunk names."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

from unified_vae.data.sources.base import BadImage

Convert = Callable[[Image.Image], Image.Image]
"""From an image of the mode that the conversion is for to mode RGB."""

HDR_TRANSFERS = (16, 18)  # PQ and HLG, by their number in ITU-T H.273
SAME_LEVELS = 1  # a conversion that changes no color by more is left out: most profiles are sRGB itself


def to_srgb(image: Image.Image, raw: object) -> Convert | None:
    """Return the conversion of an image to sRGB, for its mode; None where it is in sRGB already, or has no profile.

    Args:
        raw: the file's bytes, where it was one.

    Raises:
        BadImage: it is an HDR image, which sRGB cannot hold.
    """
    if isinstance(raw, bytes) and raw.startswith(b"\x89PNG"):
        cicp = png_chunk(raw, b"cICP")
        if cicp and len(cicp) == 4 and cicp[1] in HDR_TRANSFERS:
            raise BadImage("an HDR image (PQ or HLG in cICP), which sRGB cannot hold")
    profile = image.info.get("icc_profile")
    return _profile_conversion(profile, image.mode) if profile else None


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


def _changes_nothing(convert: Convert, mode: str) -> bool:
    """Whether a conversion leaves a set of grays and colors as they are, but for rounding."""
    levels = np.linspace(0, 255, 18).astype(np.uint8)
    colors = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(18, -1, 3)
    test = Image.fromarray(colors if mode == "RGB" else colors[..., 0])
    before = np.asarray(test.convert("RGB")).astype(int)
    return int(np.abs(np.asarray(convert(test)).astype(int) - before).max()) <= SAME_LEVELS
