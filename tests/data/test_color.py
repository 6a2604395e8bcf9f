"""Colors become sRGB by the ICC profile, and HDR images are listed."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from unified_vae.data.color import without_text
from unified_vae.data.decode import PixelFormat, decode
from unified_vae.data.sources.base import BadImage

SIZE = 16
RGB = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
FORM = PixelFormat(SIZE, 3)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def png(pixels: np.ndarray | Image.Image, *chunks: tuple[bytes, bytes], **options: object) -> bytes:
    """A PNG with further chunks behind its header."""
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, "PNG", **options)
    data = buffer.getvalue()
    more = b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )
    return data[:33] + more + data[33:]


def pixels(data: bytes) -> np.ndarray:
    return decode(data, FORM).pixels.astype(int)


@pytest.mark.parametrize(
    "data",
    [png(RGB, icc_profile=SRGB), png(RGB, icc_profile=b"damaged"), png(RGB, (b"cICP", bytes([1, 13, 0, 1])))],
    ids=["sRGB", "damaged profile", "cICP of sRGB"],
)
def test_what_is_srgb_stays_to_the_bit(data: bytes) -> None:
    np.testing.assert_array_equal(pixels(data), RGB)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_profile_is_applied_whatever_the_mode(mode: str) -> None:
    """A profile whose primaries red and blue are exchanged exchanges the channels."""
    exchanged = SRGB.replace(b"rXYZ", b"none").replace(b"bXYZ", b"rXYZ").replace(b"none", b"bXYZ")
    image = Image.fromarray(RGB).convert(mode)
    expected = np.asarray(image.convert("RGB"))[..., ::-1].astype(int)
    assert np.abs(pixels(png(image, icc_profile=exchanged)) - expected).max() <= 2


def test_hdr_is_listed_with_the_reason() -> None:
    with pytest.raises(BadImage, match="HDR"):
        decode(png(RGB, (b"cICP", bytes([9, 16, 0, 1]))), FORM)


@pytest.mark.parametrize("chunk", [b"tEXt", b"zTXt", b"iTXt"])
@pytest.mark.parametrize("content", [b"key\0" + b"\xff" * 9, b"key\0\0" + zlib.compress(b"a" * 3_000_000)])
def test_text_never_turns_good_pixels_away(chunk: bytes, content: bytes) -> None:
    data = png(RGB, (chunk, content))
    np.testing.assert_array_equal(pixels(data), RGB)
    assert chunk not in without_text(data)
