"""Colors become sRGB whatever says what they are: ICC profiles, cICP, gAMA and cHRM."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from unified_vae.data.color import SRGB_PRIMARIES, without_text
from unified_vae.data.decode import PixelFormat, decode
from unified_vae.data.sources.base import BadImage

SIZE = 16
RGB = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
FORM = PixelFormat(SIZE, 3)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
P3 = (0.680, 0.320, 0.265, 0.690, 0.150, 0.060)


def png(pixels: np.ndarray, *chunks: tuple[bytes, bytes], **options: object) -> bytes:
    """A PNG with further chunks behind its header."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **options)
    data = buffer.getvalue()
    more = b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )
    return data[:33] + more + data[33:]


def chrm(primaries: tuple[float, ...]) -> tuple[bytes, bytes]:
    return b"cHRM", struct.pack(">8I", *(round(1e5 * value) for value in (0.3127, 0.3290, *primaries)))


def gama(gamma: float) -> tuple[bytes, bytes]:
    return b"gAMA", struct.pack(">I", round(1e5 * gamma))


def pixels(data: bytes) -> np.ndarray:
    return decode(data, FORM).pixels.astype(int)


def encode_srgb(light: np.ndarray) -> np.ndarray:
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 0) ** (1 / 2.4) - 0.055)


def decode_srgb(levels: np.ndarray) -> np.ndarray:
    values = levels / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize(
    "data",
    [
        png(RGB, icc_profile=SRGB),
        png(RGB, icc_profile=b"damaged"),
        png(RGB, (b"cICP", bytes([1, 13, 0, 1]))),
        png(RGB, (b"cICP", bytes([2, 2, 0, 1]))),
        png(RGB, gama(1 / 2.2)),
        png(RGB, gama(1 / 2.2), chrm(SRGB_PRIMARIES)),
        png(RGB, (b"sRGB", b"\0"), gama(0.9)),
    ],
    ids=[
        "sRGB",
        "damaged profile",
        "cICP of sRGB",
        "cICP that says nothing",
        "gamma 2.2",
        "its primaries",
        "sRGB wins",
    ],
)
def test_what_is_srgb_stays_to_the_bit(data: bytes) -> None:
    np.testing.assert_array_equal(pixels(data), RGB)


def test_a_profile_is_applied_whatever_the_mode() -> None:
    """A profile of gamma 1 makes every mode lighter in the same way: gray, color, palette and with alpha."""
    gray = RGB[..., 0]
    linear = png(gray, gama(1.0))
    expected = encode_srgb(gray / 255)
    assert np.abs(pixels(linear)[..., 0] - expected).max() <= 1
    assert np.abs(decode(linear, PixelFormat(SIZE, 1)).pixels[..., 0] - expected).max() <= 1
    alpha = png(np.dstack([RGB, np.full((SIZE, SIZE), 255, np.uint8)]), gama(1.0))
    assert np.abs(pixels(alpha) - encode_srgb(RGB / 255)).max() <= 1


@pytest.mark.parametrize(
    "chunks", [[(b"cICP", bytes([12, 13, 0, 1]))], [chrm(P3), gama(1 / 2.2)]], ids=["cICP", "cHRM"]
)
def test_p3_colors_become_more_saturated(chunks: list[tuple[bytes, bytes]]) -> None:
    """The matrix from P3 to sRGB, from the published one of CSS Color 4 (through XYZ)."""
    matrix = np.array([[1.2249, -0.2247, 0], [-0.0420, 1.0419, 0], [-0.0197, -0.0786, 1.0979]])
    expected = encode_srgb((decode_srgb(RGB) @ matrix.T).clip(0, 1))
    assert np.abs(pixels(png(RGB, *chunks)) - expected).max() <= 2
    assert np.abs(expected - RGB).max() > 20


def test_hdr_is_listed_with_the_reason() -> None:
    with pytest.raises(BadImage, match="HDR"):
        decode(png(RGB, (b"cICP", bytes([9, 16, 0, 1]))), FORM)


@pytest.mark.parametrize("chunk", [b"tEXt", b"zTXt", b"iTXt"])
@pytest.mark.parametrize("content", [b"key\0" + b"\xff" * 9, b"key\0\0" + zlib.compress(b"a" * 3_000_000)])
def test_text_never_turns_good_pixels_away(chunk: bytes, content: bytes) -> None:
    data = png(RGB, (chunk, content))
    np.testing.assert_array_equal(pixels(data), RGB)
    assert chunk not in without_text(data)
