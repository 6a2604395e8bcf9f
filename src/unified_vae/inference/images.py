"""Whatever a user holds as images - files, folders, Pillow, NumPy, tensors - as batches of the model's size.

What has another size, color or type is treated like a training image (`data.decode`): upright, flattened over the
background, center square, Lanczos, 8 bits. Numbers that have the model's shape already stay as they are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from unified_vae.core.errors import MOST_LISTED, DataError
from unified_vae.core.events import Observer
from unified_vae.data.decode import ROUNDING, PixelFormat, decode, quiet_pillow, scale_to_8_bit
from unified_vae.data.sources.base import BadImage, Quarantined
from unified_vae.data.sources.folder import has_image_extension, is_hidden, rejection_reason

CHANNELS = (1, 3, 4)
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's conversion to gray

Images: TypeAlias = Any
"""A path of an image or of a folder of images, a Pillow image, an array [h, w], [h, w, c] or [n, h, w, c], a tensor
[c, h, w] or [n, c, h, w], or a sequence of these. Numbers are uint8, or float in 0..1."""


@dataclass(frozen=True)
class Item:
    """One image that has not been read yet.

    Attributes:
        name: for messages, e.g. a path.
        load: gives uint8 or float32 [channels, size, size] in the model's form; raises BadImage or OSError.
        in_folder: a file in a folder that was named, not named itself.
    """

    name: str
    load: Callable[[], Tensor]
    in_folder: bool = False


@dataclass(frozen=True)
class Batch:
    """Images that were read.

    Attributes:
        images: float32 [n, channels, size, size] in [0, 1].
        numbers: place of each among all images that were given, those left out included.
        names: of each, e.g. a path.
    """

    images: Tensor
    numbers: Sequence[int]
    names: Sequence[str]


def batches(
    images: Images,
    form: PixelFormat,
    batch_size: int,
    device: torch.device,
    left_out: list[Quarantined],
    skip_named: bool = False,
) -> Iterator[Batch]:
    """Batches of at most `batch_size` on `device`, read as they are asked for.

    Args:
        left_out: receives files that cannot be used. Those in a folder are left out; those that were named are an
            error, because the caller counts on a row for each.
        skip_named: leave these out too.

    Raises:
        DataError: there is no image, none can be used, or a named one cannot; it names all of them.
    """
    items = list_images(images, form)
    if not items:
        raise DataError("there are no images: give at least one")

    def collate(loaded: Sequence[tuple[int, Tensor]]) -> Batch:
        numbers, pixels = zip(*loaded, strict=True)
        if all(image.dtype == torch.uint8 for image in pixels):
            tensor = torch.stack(pixels).to(device).float() / 255
        else:
            moved = [image.to(device) for image in pixels]
            tensor = torch.stack([image.float() / 255 if image.dtype == torch.uint8 else image for image in moved])
        return Batch(tensor, numbers, [items[number].name for number in numbers])

    bad_named, loaded = list[Quarantined](), list[tuple[int, Tensor]]()
    for number, item in enumerate(items):
        try:
            with quiet_pillow():
                pixels = item.load()
        except (BadImage, OSError) as error:
            why = str(error) if isinstance(error, BadImage) else f"cannot be read: {error.strerror}"
            (left_out if skip_named or item.in_folder else bad_named).append(Quarantined(item.name, why))
        else:
            if not bad_named:  # else the rest is read only to name all that cannot be used
                loaded.append((number, pixels))
        if len(loaded) == batch_size:
            yield collate(loaded)
            loaded = []
    if bad_named or len(left_out) == len(items):
        raise DataError(describe_unusable(bad_named or left_out, len(items)))
    if loaded:
        yield collate(loaded)


def describe_unusable(bad: Sequence[Quarantined], count: int) -> str:
    """A sentence that names those of `count` images that cannot be used, each with its reason."""
    if count == 1:
        return bad[0].format_line(" cannot be used: ")
    listed = "; ".join(image.format_line() for image in bad[:MOST_LISTED])
    more = f"; and {len(bad) - MOST_LISTED:,} more" if len(bad) > MOST_LISTED else ""
    return f"{len(bad):,} of {count:,} images cannot be used: {listed}{more}"


def report_left_out(left_out: Sequence[Quarantined], count: int, observer: Observer) -> str:
    """Name each of `count` files that could not be used; returns the error that the command ends with, or ""."""
    for bad in left_out:
        observer.notice(f"left out: {bad.format_line()}")
    return f"{describe_unusable(left_out, count)}; the others are done" if left_out else ""


def list_images(images: Images, form: PixelFormat) -> list[Item]:
    """The images one by one; only the names of files are looked at yet."""
    match images:
        case str() | os.PathLike():
            in_folder = Path(images).is_dir()
            files = image_files([Path(images)])
            return [Item(str(path), partial(_from_file, path, form), in_folder) for path in files]
        case Image.Image():
            return [Item("the image", partial(_from_raw, images, form))]
        case Tensor():
            return [Item(name, partial(_from_tensor, image, form)) for name, image in _split(images, channel_dim=0)]
        case np.ndarray():
            return [Item(name, partial(_from_array, image, form)) for name, image in _split(images, channel_dim=-1)]
        case Sequence():
            return [
                item if isinstance(image, str | os.PathLike) else Item(f"image {number}", item.load)
                for number, image in enumerate(images)
                for item in list_images(image, form)
            ]
    raise DataError(
        f"a {type(images).__name__} is no image: give a path, a Pillow image, a NumPy array, a tensor, or a list"
    )


def image_files(paths: Sequence[Path]) -> list[Path]:
    """The files that are named, and those in the folders that are named, at any depth, in the order of their names.

    Raises:
        DataError: a path is not there, or a folder has no images.
    """

    def is_image_in(path: Path, folder: Path) -> bool:
        name = path.relative_to(folder).as_posix()
        return has_image_extension(name) and not is_hidden(name) and path.is_file()

    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if is_image_in(file, path))
            if not inside:
                raise DataError(f"the folder {path} has no images")
            files += inside
        elif path.exists():
            files.append(path)
        else:
            raise DataError(f"{path} is not there: name an image or a folder of images")
    return files


def _split(images: Any, channel_dim: int) -> list[tuple[str, Any]]:
    """(name, image) of each image of an array or tensor: [h, w] or with channels, [c, h, w] or [h, w, c]."""
    shape = tuple(images.shape)
    if len(shape) == 2 or (len(shape) == 3 and shape[channel_dim] in CHANNELS):
        return [("the image", images)]
    if len(shape) == 4 and shape[1:][channel_dim] in CHANNELS:
        return [(f"image {number}", image) for number, image in enumerate(images)]
    expected = "[c, h, w] or [n, c, h, w]" if channel_dim == 0 else "[h, w], [h, w, c] or [n, h, w, c]"
    kind = "tensor" if channel_dim == 0 else "array"
    raise DataError(f"a {kind} of images has the shape {expected} with 1, 3 or 4 channels, not {list(shape)}")


def _from_file(path: Path, form: PixelFormat) -> Tensor:
    if why := rejection_reason(path.name, path.stat().st_size):
        raise BadImage(why)
    return _from_raw(path.read_bytes(), form)


def _from_raw(raw: bytes | Image.Image | npt.NDArray[np.uint8], form: PixelFormat) -> Tensor:
    return torch.from_numpy(np.array(decode(raw, form).pixels)).permute(2, 0, 1)


def _from_array(image: npt.NDArray[Any], form: PixelFormat) -> Tensor:
    """Of uint8 or float; other integers are scaled as in a file of arrays."""
    if image.dtype.kind not in "buif":
        raise BadImage(f"it holds {image.dtype}; images are integers or floats")
    image = image[..., None] if image.ndim == 2 else image
    numbers = image.astype(np.float32) if image.dtype.kind == "f" else scale_to_8_bit(image, form.range)[0]
    return _from_tensor(torch.from_numpy(np.ascontiguousarray(numbers)).permute(2, 0, 1), form)


def _from_tensor(image: Tensor, form: PixelFormat) -> Tensor:
    image = image.detach()
    image = image[None] if image.ndim == 2 else image
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise BadImage(f"it holds {image.dtype}; images are uint8, or float in 0..1")
    if image.is_floating_point():
        low, high = (float(bound) for bound in image.aminmax()) if image.numel() else (0.0, 0.0)
        black, white = form.range or (0.0, 1.0)
        if low != low:
            raise BadImage("float values that are NaN")
        if form.range is None and not (low >= -ROUNDING and high <= 1 + ROUNDING):
            hint = "; divide it by 255" if 1 + ROUNDING < high <= 255 and low >= 0 else ""
            raise BadImage(f"float values from {low:.9g} to {high:.9g}; they must lie in 0..1{hint}")
        if black != 0 or white != 1 or low < 0 or high > 1:
            image = ((image.float() - black) / (white - black)).clamp(0, 1)

    # Of the model's size already: the numbers stay as they are, or change their number of channels.
    if tuple(image.shape[1:]) == (form.size, form.size):
        if image.shape[0] == form.channels:
            return image if image.dtype == torch.uint8 else image.float()
        if image.is_floating_point() and image.shape[0] != 4:
            if form.channels == 3:
                return image.float().expand(3, -1, -1)
            weights = torch.tensor(LUMA, device=image.device)[:, None, None]
            return (image.float() * weights).sum(0, keepdim=True)

    pixels = image if image.dtype == torch.uint8 else (image.float() * 255).round().to(torch.uint8)
    return _from_raw(np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy()), form)
