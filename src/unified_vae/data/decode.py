"""From a raw image to uint8 pixels of the run's size: sRGB, upright, flattened, resized to cover and center-cropped.

Pillow only: it reports damage as an exception, where torchvision's PNG decoder can end the process.
"""

from __future__ import annotations

import io
import logging
import math
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor, UnidentifiedImageError

from unified_vae.data.color import to_srgb, without_text
from unified_vae.data.sources.base import BadImage, RawImage
from unified_vae.data.sources.folder import has_heif

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

_EXIF_ORIENTATION, _TIFF_BITS, _TIFF_COMPRESSION, _TIFF_PHOTOMETRIC, _TIFF_PLANAR = 0x0112, 258, 259, 262, 284
_PAGED_FORMATS = frozenset({"TIFF", "GIF", "PNG", "WEBP", "AVIF"})  # what else has several frames has previews
ROUNDING = 1e-3  # that float values may lie outside of their range

Item = TypeVar("Item")
T = TypeVar("T")
_TASK_IMAGES = 16  # a task costs about 50 us, a 32 px image 300 us
_TASKS_PER_WORKER = 4


@dataclass(frozen=True)
class Header:
    """What is known of an image before its pixels are decoded.

    Attributes:
        pages: or frames; only the first is used.
    """

    width: int
    height: int
    gray: bool
    pages: int = 1


@dataclass(frozen=True)
class PixelFormat:
    """The form every image of a run is brought to: [size, size, channels], over a background color.

    Attributes:
        range: values of black and white in images that are deeper than 8 bits; None for the whole range of their type.
    """

    size: int
    channels: int
    background: tuple[int, int, int] = (255, 255, 255)
    range: tuple[float, float] | None = None


class Peak(NamedTuple):
    """The brightest value of an image that is deeper than 8 bits, the value of white, and the kind of its values."""

    high: float
    white: float
    kind: str


class Decoded(NamedTuple):
    """An image in the form of the run, and what the user should know of it.

    Attributes:
        pixels: uint8 [size, size, channels].
        is_clear: every pixel of it is transparent, so that it shows the background alone.
        peak: None for an image of 8 bits.
    """

    pixels: npt.NDArray[np.uint8]
    is_clear: bool = False
    peak: Peak | None = None


def parse_color(text: str) -> tuple[int, int, int]:
    """Return (red, green, blue) of a color that Pillow knows: white, black, gray, #rrggbb."""
    red, green, blue, *_ = ImageColor.getrgb(text)
    return red, green, blue


def parse_range(value: Literal["auto"] | Sequence[float]) -> tuple[float, float] | None:
    """Return the values of black and white that `data.range` states; None for `auto`."""
    return None if value == "auto" else (float(value[0]), float(value[1]))


def read_header(raw: RawImage) -> Header:
    """Return size and color of an image from its header; raises BadImage where it is no image or far too large."""
    with _as_bad_image():
        if isinstance(raw, np.ndarray):
            height, width, *channels = raw.shape
            _check_size(width, height)
            return Header(width, height, not channels or channels[0] == 1)
        image = _open(raw)
        pages = getattr(image, "n_frames", 1) if image.format in _PAGED_FORMATS else 1
        return Header(image.width, image.height, image.mode in GRAY_MODES, pages)


def decode(raw: RawImage, form: PixelFormat) -> Decoded:
    """Return an image in the form of a run. Raises BadImage with the reason."""
    with _as_bad_image():
        peak = None
        if isinstance(raw, np.ndarray) and raw.dtype != np.uint8:
            raw, peak = scale_to_8_bit(raw, form.range)
        image = _open(raw)
        try:
            image.load()
        except (ValueError, SyntaxError):  # of text behind the pixels
            if not isinstance(raw, bytes) or raw == (stripped := without_text(raw)):
                raise
            image = _open(stripped)
            image.load()
        if image.mode in GRAY_MODES - {"1", "L", "LA", "La"}:
            image, peak = _deep_gray_to_8_bit(image, form.range)
        image = _upright(image)

        # Of transparent images, colors are converted without alpha, and before they are blended with the background
        is_clear = False
        if image.has_transparency_data:
            layer = image.convert("RGBA")
            alpha = layer.getchannel("A")
            is_clear = alpha.getextrema()[1] == 0
            opaque = layer.convert("RGB")
            if convert := to_srgb(opaque, raw):
                opaque = convert(opaque)
            if is_clear and image.format in ("BMP", "DIB"):  # programs leave that byte at 0
                image, is_clear = opaque, False
            else:
                image = Image.new("RGB", layer.size, form.background)
                image.paste(opaque, mask=alpha)
        else:
            if image.mode not in ("L", "RGB", "CMYK"):
                info = image.info
                image = image.convert("L" if image.mode == "1" else "RGB")  # bilevel, palette, YCbCr
                image.info = info
            if convert := to_srgb(image, raw):
                image = convert(image)

        # Gray by ITU-R 601, gray repeated; CMYK to gray in two steps, as Pillow has no direct one
        if image.mode == "CMYK":
            image = image.convert("RGB")
        image = image.convert("L" if form.channels == 1 else "RGB")
        pixels = np.asarray(_cover(image, form.size)).reshape(form.size, form.size, form.channels)
        return Decoded(pixels, is_clear, peak)


def scale_to_8_bit(
    values: npt.NDArray[np.generic], stated: tuple[float, float] | None = None
) -> tuple[npt.NDArray[np.uint8], Peak | None]:
    """Return an array as uint8, and its peak (None for uint8).

    Floats and booleans are scaled from 0..1, 16-bit unsigned integers from 0..65,535, other integers from 0..255; or
    all of them from a range that was stated, beyond which they are clipped.

    Raises:
        BadImage: a value is NaN, or lies outside of a range that was not stated by more than rounding.
    """
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values), None  # type: ignore[arg-type]
    sixteen_bits = values.dtype.kind == "u" and values.dtype.itemsize == 2  # of either byte order
    usual = {"b": 1.0, "f": 1.0}.get(values.dtype.kind, 65535.0 if sixteen_bits else 255.0)
    return _scale(values, stated or (0.0, usual), stated is not None, str(values.dtype))


def _scale(
    values: npt.NDArray[np.generic], bounds: tuple[float, float], is_stated: bool, kind: str
) -> tuple[npt.NDArray[np.uint8], Peak]:
    with np.errstate(invalid="ignore"):  # a NaN that says so when it is widened
        numbers = values.astype(np.float64)
    low, high = (float(numbers.min()), float(numbers.max())) if numbers.size else (0.0, 0.0)
    black, white = bounds
    slack = ROUNDING * (white - black) if values.dtype.kind == "f" else 0.0
    if np.isnan(low) or np.isnan(high):  # also of infinities of both signs
        raise BadImage(f"{kind} values that are NaN")
    if not is_stated and not (low >= black - slack and high <= white + slack):
        hint = f"; if that is their range, set data.range=[{low:g},{high:g}]" if math.isfinite(high - low) else ""
        raise BadImage(f"{kind} values from {low:.9g} to {high:.9g}, not in {black:g}..{white:g}{hint}")
    levels = np.rint(((numbers - black) * (255.0 / (white - black))).clip(0, 255)).astype(np.uint8)
    return levels, Peak(high, white, kind)


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
        formats = (*FORMATS, "HEIF") if raw[4:8] == b"ftyp" and has_heif() else FORMATS
        try:
            image = Image.open(io.BytesIO(raw), formats=formats)
        except (ValueError, SyntaxError, UnidentifiedImageError):
            if raw == (stripped := without_text(raw)):
                raise
            image = Image.open(io.BytesIO(stripped), formats=FORMATS)
    else:
        image = raw
    _check_size(*image.size)
    pixels = image.width * image.height
    if isinstance(raw, bytes) and pixels > MANY_PIXELS and pixels > MAX_PIXELS_PER_BYTE * len(raw):
        raise BadImage(f"{image.width} x {image.height} pixels in {len(raw):,} bytes: it looks like a bomb")
    tags = getattr(image, "tag_v2", None) or {}
    if tags.get(_TIFF_PLANAR) == 2 and tags.get(_TIFF_COMPRESSION, 1) == 1:
        bits = max(np.ravel(tags.get(_TIFF_BITS, 8)))
        if bits != 8:  # Pillow reads these as noise
            raise BadImage(f"a TIFF of {bits} bits with separate planes: save it with interleaved channels")
    return image


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadImage(f"{width} x {height} is more than {MAX_PIXELS // 10**6} megapixels")
    if min(width, height) < 1:
        raise BadImage("no pixels")


def _upright(image: Image.Image) -> Image.Image:
    """Undo the camera's orientation. Unreadable EXIF counts as upright: the pixels are still good."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except MemoryError:  # says nothing of the EXIF
        raise
    except Exception:  # a dozen kinds: Pillow does not wrap what damaged EXIF does to its readers
        return image
    method = _UPRIGHT.get(orientation)
    return image if method is None else image.transpose(method)


def _deep_gray_to_8_bit(image: Image.Image, stated: tuple[float, float] | None) -> tuple[Image.Image, Peak]:
    """Deep gray (16-bit, 32-bit, float) scaled to 8 bits; Pillow's own conversion clips it to white."""
    values = np.asarray(image)
    tags: Mapping[int, object] = getattr(image, "tag_v2", None) or {}
    deep_bits = 12 if tags.get(_TIFF_BITS) in (12, (12,)) else 16  # Pillow scales deep PPM to 16
    usual = 1.0 if image.mode == "F" else float(2**deep_bits - 1)
    kind = {"F": "float", "I": "32-bit gray"}.get(image.mode, f"{deep_bits}-bit gray")
    gray, peak = _scale(values, stated or (0.0, usual), stated is not None, kind)
    if tags.get(_TIFF_PHOTOMETRIC) == 0:  # WhiteIsZero, which Pillow leaves as it is in deep modes
        gray = 255 - gray
    result = Image.fromarray(gray)
    clear = image.info.get("transparency")
    if isinstance(clear, int):  # a 16-bit PNG may name one gray value as transparent
        result = Image.merge("LA", (result, Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))))
    result.getexif()[_EXIF_ORIENTATION] = image.getexif().get(_EXIF_ORIENTATION, 1)
    result.info |= {name: image.info[name] for name in ("icc_profile", "gamma", "srgb") if name in image.info}
    return result, peak


def _cover(image: Image.Image, size: int) -> Image.Image:
    """The center square, resized with Lanczos, which widens its kernel (antialias) when it shrinks."""
    if image.size == (size, size):
        return image
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.LANCZOS, box=box)
