"""From a raw image to uint8 pixels of the run's size: upright, flattened, resized to cover and center-cropped.

Pillow only: it reports damage as an exception, where torchvision's PNG decoder can end the process.
Color profiles are not applied: every file is taken as sRGB.
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from unified_vae.data.sources.base import BadImage, RawImage

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "QOI")
"""Formats with a signature and a decoder of their own; EPS and others that start programs stay out."""

MAX_PIXELS = 128_000_000
"""More pixels than this are refused from the header alone (a phone's 108 megapixels still pass)."""

MANY_PIXELS, MAX_PIXELS_PER_BYTE = 16_000_000, 4_000
"""An image beyond the first needs a byte of the file per so many pixels: four times what PNG makes of one gray."""

GRAY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F"})

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each value of the EXIF tag Orientation."""

_NAMED_COLORS = {"white": (255, 255, 255), "black": (0, 0, 0), "gray": (128, 128, 128)}
_NAMED_COLORS["grey"] = _NAMED_COLORS["gray"]  # as model folders of earlier versions spell it
_EXIF_ORIENTATION, _TIFF_BITS, _TIFF_PHOTOMETRIC = 0x0112, 258, 262

Item = TypeVar("Item")
T = TypeVar("T")
_TASK_IMAGES = 16  # a task costs about 50 us, a 32 px image 300 us
_TASKS_PER_WORKER = 4


@dataclass(frozen=True)
class Header:
    """What is known of an image before its pixels are decoded."""

    width: int
    height: int
    gray: bool


@dataclass(frozen=True)
class PixelFormat:
    """The form every image of a run is brought to: [size, size, channels], over a background color."""

    size: int
    channels: int
    background: tuple[int, int, int] = (255, 255, 255)


def parse_color(text: str) -> tuple[int, int, int]:
    """Return (red, green, blue) of white, black, gray or #rrggbb."""
    if text in _NAMED_COLORS:
        return _NAMED_COLORS[text]
    red, green, blue = bytes.fromhex(text.removeprefix("#"))
    return red, green, blue


def read_header(raw: RawImage) -> Header:
    """Return size and color of an image from its header; raises BadImage where it is no image or far too large."""
    with _as_bad_image():
        image = _open(raw)
        return Header(image.width, image.height, image.mode in GRAY_MODES)


def decode(raw: RawImage, form: PixelFormat) -> npt.NDArray[np.uint8]:
    """Return pixels of shape [size, size, channels]. Raises BadImage with the reason."""
    with _as_bad_image():
        image = _open(raw)
        image.load()
        image = _to_8_bit(image)

        # Undo the camera's orientation. Unreadable EXIF counts as upright: the pixels are still good
        try:
            method = _UPRIGHT.get(image.getexif().get(_EXIF_ORIENTATION, 1))
        except MemoryError:  # says nothing of the EXIF
            raise
        except Exception:  # a dozen kinds: Pillow does not wrap what damaged EXIF does to its readers
            method = None
        if method is not None:
            image = image.transpose(method)

        # To mode L or RGB: transparent parts show the background; color to gray by ITU-R 601, gray repeated
        if image.has_transparency_data:
            layer = image.convert("RGBA")
            image = Image.new("RGB", layer.size, form.background)
            image.paste(layer, mask=layer.getchannel("A"))
        elif image.mode not in ("1", "L", "RGB"):
            image = image.convert("RGB")  # palette, CMYK, YCbCr: to gray in two steps, as Pillow has no direct one
        mode = "L" if form.channels == 1 else "RGB"
        if image.mode != mode:
            image = image.convert(mode)

        # The center square, resized with Lanczos, which widens its kernel (antialias) when it shrinks
        if image.size != (form.size, form.size):
            side = min(image.size)
            left, top = (image.width - side) / 2, (image.height - side) / 2
            box = (left, top, left + side, top + side)
            image = image.resize((form.size, form.size), Image.Resampling.LANCZOS, box=box)
        return np.asarray(image).reshape(form.size, form.size, form.channels)


def to_uint8(values: npt.NDArray[np.generic], white: float | None = None, what: str = "") -> npt.NDArray[np.uint8]:
    """Scale values from black (0) to white to 0..255: the one place where a range of values is decided.

    Args:
        white: by default that of the dtype: floats and booleans 1, uint16 65535, other integers 255.
        what: the values in the message, by default the dtype.

    Raises:
        BadImage: a value lies outside.
    """
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if white is None:
        is_uint16 = values.dtype.kind == "u" and values.dtype.itemsize == 2  # of either byte order
        white = {"b": 1.0, "f": 1.0}.get(values.dtype.kind, 65535.0 if is_uint16 else 255.0)
    with np.errstate(invalid="ignore"):  # a NaN that says so when it is widened
        exact = values.astype(np.float64)
    low, high = (float(exact.min()), float(exact.max())) if exact.size else (0.0, 0.0)
    if not (low >= 0.0 and high <= white):  # false for NaN as well
        raise BadImage(f"{what or values.dtype} values from {low:g} to {high:g}; they must lie in 0..{white:g}")
    return np.rint(exact * (255.0 / white)).astype(np.uint8)


def cpu_count() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_images(function: Callable[[Item], T], items: Iterable[Item]) -> Iterator[T | BadImage]:
    """Yield `function`, which loads an image, of each item, in order; one that fails gives its BadImage instead.

    Runs in threads, with a bounded number of images in flight. Pillow decodes without the GIL, and a process must
    pickle every image: on two cores 855 256 px JPEGs/s with two threads, 470 with two processes; at 32 px 3,300 and
    2,200.
    """

    def run(chunk: list[Item]) -> list[T | BadImage]:
        results: list[T | BadImage] = []
        for item in chunk:
            try:
                results.append(function(item))
            except BadImage as bad:
                results.append(bad)
            except OSError as error:
                results.append(BadImage(f"cannot be read: {error.strerror or error}"))
        return results

    remaining = iter(items)
    workers = cpu_count()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    pending: deque[Future[list[T | BadImage]]] = deque()
    try:
        while True:
            while len(pending) < workers * _TASKS_PER_WORKER and (chunk := list(islice(remaining, _TASK_IMAGES))):
                pending.append(pool.submit(run, chunk))
            if not pending:
                return
            yield from pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Silence Pillow's warnings about damage and odd EXIF: BadImage says what matters of it."""
    log = logging.getLogger("PIL")
    level = log.level
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        log.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            log.setLevel(level)


@contextmanager
def _as_bad_image() -> Iterator[None]:
    """Pillow's plugins raise nearly anything on damaged files; each becomes a reason."""
    try:
        yield
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage("not an image that can be read") from None
    except Image.DecompressionBombError:
        raise BadImage(f"more than {MAX_PIXELS // 10**6} megapixels") from None
    except MemoryError:
        raise BadImage("not enough memory to decode it") from None
    except Exception as error:
        raise BadImage(f"damaged or not supported: {str(error) or type(error).__name__}") from None


def _open(raw: RawImage) -> Image.Image:
    """The image with only its header read; its size is checked here, before any pixel is decoded."""
    if isinstance(raw, np.ndarray):
        image = Image.fromarray(raw[..., 0] if raw.ndim == 3 and raw.shape[-1] == 1 else raw)
    elif isinstance(raw, bytes):
        if not raw:
            raise BadImage("empty file")
        image = Image.open(io.BytesIO(raw), formats=FORMATS)
    else:
        image = raw
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        raise BadImage(f"{image.width} x {image.height} is more than {MAX_PIXELS // 10**6} megapixels")
    if isinstance(raw, bytes) and pixels > MANY_PIXELS and pixels > MAX_PIXELS_PER_BYTE * len(raw):
        raise BadImage(f"{image.width} x {image.height} pixels in {len(raw):,} bytes: it looks like a bomb")
    if min(image.size) < 1:
        raise BadImage("no pixels")
    return image


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Deep gray (16-bit, 32-bit, float) scaled to 8 bits; Pillow's own conversion clips it to white."""
    if image.mode not in GRAY_MODES - {"1", "L", "LA", "La"}:
        return image
    values = np.asarray(image)
    tags: Mapping[int, object] = getattr(image, "tag_v2", None) or {}
    deep_bits = 12 if tags.get(_TIFF_BITS) in (12, (12,)) else 16  # Pillow scales deep PPM to 16
    gray = to_uint8(values, *((1.0, "float") if image.mode == "F" else (2.0**deep_bits - 1, "gray")))
    if tags.get(_TIFF_PHOTOMETRIC) == 0:  # WhiteIsZero, which Pillow leaves as it is in deep modes
        gray = 255 - gray
    result = Image.fromarray(gray)
    clear = image.info.get("transparency")
    if isinstance(clear, int):  # a 16-bit PNG may name one gray value as transparent
        result = Image.merge("LA", (result, Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))))
    result.getexif()[_EXIF_ORIENTATION] = image.getexif().get(_EXIF_ORIENTATION, 1)
    return result
