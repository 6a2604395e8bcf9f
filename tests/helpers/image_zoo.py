"""About sixty files that image folders really hold: each with its pixels, or why it must be refused.

All are made here; the expected pixels are known beforehand or come from Pillow's plain decoder.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

SIZE = 16
BACKGROUND = (255, 0, 128)
Pixels = npt.NDArray[np.uint8]


def pattern(seed: int, channels: int = 3) -> Pixels:
    """Known pixels, [16, 16, channels]."""
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, channels), dtype=np.uint8)


RGB, GRAY = pattern(1), pattern(2, 1)[..., 0]
ALPHA = pattern(3, 1)[..., 0]


def repeated(gray: Pixels) -> Pixels:
    return np.repeat(gray[..., None], 3, axis=2)


def over_background(color: Pixels, alpha: Pixels) -> Pixels:
    """The compositing equation, rounded."""
    weight = alpha[..., None] / 255.0
    return np.rint(color * weight + np.array(BACKGROUND) * (1 - weight)).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def plainly(data: bytes) -> Pixels:
    """What Pillow decodes, upright and in RGB, covered and cropped by its own ImageOps.fit."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    return np.asarray(ImageOps.fit(image, (SIZE, SIZE), Image.Resampling.LANCZOS))


@dataclass(frozen=True)
class Good:
    """A file that must be used, with these pixels."""

    data: bytes
    pixels: Pixels


def _lossless() -> dict[str, Good]:
    rgb, gray = Image.fromarray(RGB), Image.fromarray(GRAY)
    kinds = {"png": "PNG", "bmp": "BMP", "tif": "TIFF", "ppm": "PPM"}
    zoo = {f"rgb.{extension}": Good(encoded(rgb, kind), RGB) for extension, kind in kinds.items()}
    zoo["rgb.webp"] = Good(encoded(rgb, "WEBP", lossless=True), RGB)
    zoo["rgb.jp2"] = Good(encoded(rgb, "JPEG2000"), RGB)
    zoo["lzw.tiff"] = Good(encoded(rgb, "TIFF", compression="tiff_lzw"), RGB)
    zoo["interlaced.gif"] = Good(encoded(gray, "GIF", interlace=1), repeated(GRAY))
    zoo["gray.png"] = Good(encoded(gray, "PNG"), repeated(GRAY))
    zoo["gray.pgm"] = Good(encoded(gray, "PPM"), repeated(GRAY))
    bits = np.where(GRAY > 127, 255, 0).astype(np.uint8)
    zoo["one_bit.png"] = Good(encoded(Image.fromarray(bits).convert("1"), "PNG"), repeated(bits))
    zoo["one_bit_fax.tif"] = Good(
        encoded(Image.fromarray(bits).convert("1"), "TIFF", compression="group4"), repeated(bits)
    )
    zoo["UPPER CASE ünïcode 图.PNG"] = Good(encoded(Image.fromarray(pattern(4)), "PNG"), pattern(4))
    return zoo


def _transparent() -> dict[str, Good]:
    rgba = Image.fromarray(np.dstack([RGB, ALPHA]))
    hidden = Image.fromarray(np.dstack([RGB, np.zeros_like(ALPHA)]))
    palette = Image.fromarray(GRAY % 8).convert("P")
    colors = pattern(5)[0, :8]
    palette.putpalette(colors.tobytes())
    shown = colors[GRAY % 8]
    clear_first = np.where(GRAY % 8 == 0, 0, 255).astype(np.uint8)
    levels = np.arange(0, 256, 32, dtype=np.uint8)
    key_color = RGB.copy()
    key_color[::2] = (1, 2, 3)
    keyed = np.where((key_color == (1, 2, 3)).all(-1), 0, 255).astype(np.uint8)
    la = Image.merge("LA", (Image.fromarray(GRAY), Image.fromarray(ALPHA)))
    return {
        "rgba.png": Good(encoded(rgba, "PNG"), over_background(RGB, ALPHA)),
        "rgba.tif": Good(encoded(rgba, "TIFF"), over_background(RGB, ALPHA)),
        "rgba_hidden_color.png": Good(encoded(hidden, "PNG"), over_background(RGB, np.zeros_like(ALPHA))),
        "la.png": Good(encoded(la, "PNG"), over_background(repeated(GRAY), ALPHA)),
        "palette.png": Good(encoded(palette, "PNG"), shown),
        "palette.gif": Good(encoded(palette, "GIF"), shown),
        "palette_one_clear.png": Good(encoded(palette, "PNG", transparency=0), over_background(shown, clear_first)),
        "palette_one_clear.gif": Good(encoded(palette, "GIF", transparency=0), over_background(shown, clear_first)),
        "palette_alpha.png": Good(
            encoded(palette, "PNG", transparency=levels.tobytes()), over_background(shown, levels[GRAY % 8])
        ),
        "rgb_key_color.png": Good(
            encoded(Image.fromarray(key_color), "PNG", transparency=(1, 2, 3)), over_background(key_color, keyed)
        ),
    }


def _deep() -> dict[str, Good]:
    flat = np.full((SIZE, SIZE), 40_000, dtype=np.uint16)
    ramp = np.linspace(0, 65_535, SIZE * SIZE).round().astype(np.uint16).reshape(SIZE, SIZE)
    scaled = np.rint(ramp / 257.0).astype(np.uint8)
    unit = (ramp / 65_535).astype(np.float32)
    pgm = b"P5\n16 16\n65535\n" + ramp.astype(">u2").tobytes()
    inverted = encoded(Image.fromarray(ramp), "TIFF").replace(
        struct.pack("<HHII", 262, 3, 1, 1), struct.pack("<HHII", 262, 3, 1, 0)
    )
    return {
        "sixteen_bit_flat.png": Good(encoded(Image.fromarray(flat), "PNG"), repeated(np.full_like(scaled, 156))),
        "sixteen_bit_ramp.png": Good(encoded(Image.fromarray(ramp), "PNG"), repeated(scaled)),
        "sixteen_bit.tif": Good(encoded(Image.fromarray(ramp), "TIFF"), repeated(scaled)),
        "sixteen_bit_big_endian.tif": Good(
            encoded(Image.frombytes("I;16B", (SIZE, SIZE), ramp.astype(">u2").tobytes()), "TIFF"), repeated(scaled)
        ),
        "sixteen_bit_white_is_zero.tif": Good(inverted, repeated(255 - scaled)),
        "sixteen_bit.pgm": Good(pgm, repeated(scaled)),
        "float.tif": Good(encoded(Image.fromarray(unit), "TIFF"), repeated(np.rint(unit * 255).astype(np.uint8))),
    }


def _photographs() -> dict[str, Good]:
    tall = Image.fromarray(np.random.default_rng(6).integers(0, 256, (40, 24, 3), dtype=np.uint8))
    small = Image.fromarray(RGB)
    cmyk = Image.merge("CMYK", [Image.fromarray(pattern(7, 4)[..., band].copy()) for band in range(4)])
    files = {
        "photo.jpg": encoded(tall, "JPEG"),
        "photo.avif": encoded(tall, "AVIF"),
        "photo_lossy.webp": encoded(tall, "WEBP", quality=60),
        "progressive.jpeg": encoded(tall, "JPEG", progressive=True),
        "jpeg_named.png": encoded(small, "JPEG"),
        "png_named.jpg": encoded(Image.fromarray(pattern(8)), "PNG"),
        "cmyk.jpg": encoded(cmyk, "JPEG"),
        "cmyk.tif": encoded(cmyk, "TIFF"),
        "one_pixel.png": encoded(Image.new("RGB", (1, 1), (9, 200, 30)), "PNG"),
        "strip.png": encoded(small.resize((3000, 2)), "PNG"),
        "two_pictures.mpo": encoded(small, "MPO", save_all=True, append_images=[tall]),
    }
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        files[f"orientation_{orientation}.jpg"] = encoded(tall, "JPEG", exif=exif)
        files[f"orientation_{orientation}.tif"] = encoded(tall, "TIFF", exif=exif)
    zoo = {name: Good(data, plainly(data)) for name, data in files.items()}
    plain = encoded(tall, "JPEG")
    broken_exif = encoded(tall, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\1\2\3")
    zoo["broken_exif.jpg"] = Good(broken_exif, plainly(plain))
    return zoo


def _animated() -> dict[str, Good]:
    first, second = Image.fromarray(RGB), Image.fromarray(255 - RGB)
    gray_frames = [Image.fromarray(GRAY), Image.fromarray(255 - GRAY)]
    more = {"save_all": True, "duration": 50}
    return {
        "animated.gif": Good(encoded(gray_frames[0], "GIF", append_images=gray_frames[1:], **more), repeated(GRAY)),
        "animated.webp": Good(encoded(first, "WEBP", lossless=True, append_images=[second], **more), RGB),
        "animated.png": Good(encoded(first, "PNG", append_images=[second], **more), RGB),
    }


def good_files() -> dict[str, Good]:
    """Name -> file that must be used."""
    return _lossless() | _transparent() | _deep() | _photographs() | _animated()


def png_of_zeros(width: int, height: int, rows: int) -> bytes:
    """A 1-bit PNG that says it is width x height and holds `rows` rows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((1 + (width + 7) // 8) * rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def bad_files() -> dict[str, tuple[bytes, str]]:
    """Name -> (content, a word of the reason why it must be refused)."""
    png, jpeg = encoded(Image.fromarray(RGB), "PNG"), encoded(Image.fromarray(RGB), "JPEG")
    flipped = bytearray(png)
    flipped[png.index(b"IDAT") + 40] ^= 1
    too_bright = Image.fromarray(np.full((SIZE, SIZE), 7.0, dtype=np.float32))
    not_a_number = Image.fromarray(np.full((SIZE, SIZE), np.nan, dtype=np.float32))
    negative = Image.fromarray(np.full((SIZE, SIZE), -5, dtype=np.int32))
    return {
        "truncated.png": (png[: len(png) // 2], "truncated"),
        "truncated.jpg": (jpeg[: len(jpeg) // 2], "runcated"),
        "last_byte_missing.jpg": (jpeg[:-40], "truncated"),
        "bit_flipped.png": (bytes(flipped), "damaged"),
        "empty.png": (b"", "empty"),
        "zeros.png": (bytes(500), "not an image"),
        "web_page.jpg": (b"<!DOCTYPE html><html><body>404</body></html>", "not an image"),
        "svg_named.png": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not an image"),
        "eps_named.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        "phone.heic": (b"\0\0\0\x18ftypheic", ""),
        "bright_float.tif": (encoded(too_bright, "TIFF"), "0..1"),
        "nan_float.tif": (encoded(not_a_number, "TIFF"), "NaN"),
        "negative.tif": (encoded(negative, "TIFF"), "0..65535"),
        "bomb_header.png": (png_of_zeros(50_000, 50_000, 1), "megapixels"),
        "bomb_real.png": (png_of_zeros(13_000, 13_000, 13_000), "megapixels"),
        "bomb_below_the_limit.png": (png_of_zeros(11_000, 11_000, 1), "looks like a bomb"),
    }


def odd_entries() -> dict[str, tuple[Callable[[Path], object], str]]:
    """Name -> (how to make it, a word of the reason): entries of a folder that are no regular files."""
    odd: dict[str, tuple[Callable[[Path], object], str]] = {
        "dangling.png": (lambda path: path.symlink_to("not there.png"), "leads nowhere"),
        "self.png": (lambda path: path.symlink_to(path.name), "leads nowhere"),
    }
    if hasattr(os, "mkfifo"):
        odd["pipe.png"] = (os.mkfifo, "not a regular file")
    return odd
