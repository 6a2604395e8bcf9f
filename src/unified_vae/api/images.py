"""Whatever a user holds as images - files, folders, Pillow, NumPy, tensors - as batches of the model's size.

What has another size, colour or type goes the way of training images (`data.packing.decode`): upright, flattened over
the background, centre square, Lanczos, 8 bits. Numbers that have the model's shape already stay as they are.
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

from unified_vae.core.errors import DataError
from unified_vae.data.packing.decode import PixelFormat, decode, quiet_pillow
from unified_vae.data.records import BadImage
from unified_vae.data.sources.array import eight_bit
from unified_vae.data.sources.layout import is_hidden, is_picture, refusal

CHANNELS = (1, 3, 4)
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's conversion to grey

Images: TypeAlias = Any
"""A path of an image or of a folder of images, a Pillow image, an array [h, w], [h, w, c] or [n, h, w, c], a tensor
[c, h, w] or [n, c, h, w], or a sequence of these. Numbers are uint8, or float in 0..1."""


@dataclass(frozen=True)
class Item:
    """One image that has not been read yet.

    Attributes:
        name: for messages, e.g. a path.
        load: gives uint8 or float32 [channels, size, size] in the model's form; raises BadImage.
    """

    name: str
    load: Callable[[], Tensor]


def batches(images: Images, form: PixelFormat, batch_size: int, device: torch.device) -> Iterator[Tensor]:
    """Float32 [n, channels, size, size] in [0, 1] on `device`, n at most `batch_size`; read as they are asked for.

    Raises:
        DataError: something is no image or there is none; the sentence names it.
    """
    found = items(images, form)
    if not found:
        raise DataError("there are no images: give at least one")
    for start in range(0, len(found), batch_size):
        loaded = [_loaded(item) for item in found[start : start + batch_size]]
        if all(pixels.dtype == torch.uint8 for pixels in loaded):
            yield torch.stack(loaded).to(device).float() / 255
        else:
            yield torch.stack([_as_float(pixels.to(device)) for pixels in loaded])


def items(images: Images, form: PixelFormat) -> list[Item]:
    """The images one by one; only the names of files are looked at yet."""
    match images:
        case str() | os.PathLike():
            return [Item(str(path), partial(_from_file, path, form)) for path in picture_files([Path(images)])]
        case Image.Image():
            return [Item("the image", partial(_from_raw, images, form))]
        case Tensor():
            return [Item(name, partial(_from_tensor, image, form)) for name, image in _single(images, channels_at=0)]
        case np.ndarray():
            return [Item(name, partial(_from_array, image, form)) for name, image in _single(images, channels_at=-1)]
        case Sequence():
            inner = [items(image, form) for image in images]
            return [
                Item(item.name if isinstance(images[number], str | os.PathLike) else f"image {number}", item.load)
                for number, some in enumerate(inner)
                for item in some
            ]
    raise DataError(
        f"a {type(images).__name__} is no image: give a path, a Pillow image, a NumPy array, a tensor, or a list"
    )


def picture_files(paths: Sequence[Path]) -> list[Path]:
    """The files that are named, and those in the folders that are named, at any depth, in the order of their names.

    Raises:
        DataError: a path is not there, or a folder has no images.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(each for each in path.rglob("*") if _is_picture_in(each, path))
            if not inside:
                raise DataError(f"the folder {path} has no images")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise DataError(f"{path} is not there: name an image or a folder of images")
    return found


def _is_picture_in(path: Path, folder: Path) -> bool:
    inside = path.relative_to(folder).as_posix()
    return is_picture(inside) and not is_hidden(inside) and path.is_file()


def _loaded(item: Item) -> Tensor:
    try:
        with quiet_pillow():
            return item.load()
    except BadImage as problem:
        raise DataError(f"{item.name} cannot be used: {problem}") from None
    except OSError as problem:
        raise DataError(f"{item.name} cannot be read: {problem.strerror}") from None


def _from_file(path: Path, form: PixelFormat) -> Tensor:
    if why := refusal(path.name, path.stat().st_size):
        raise BadImage(why)
    return _from_raw(path.read_bytes(), form)


def _from_raw(raw: bytes | Image.Image | npt.NDArray[np.uint8], form: PixelFormat) -> Tensor:
    pixels = decode(raw, form)
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)


def _single(images: Any, channels_at: int) -> list[tuple[str, Any]]:
    """(name, image) of each image of an array or tensor: [h, w] or with channels, [c, h, w] or [h, w, c]."""
    shape = tuple(images.shape)
    if len(shape) == 2 or (len(shape) == 3 and shape[channels_at] in CHANNELS):
        return [("the image", images)]
    if len(shape) == 4 and shape[1:][channels_at] in CHANNELS:
        return [(f"image {number}", image) for number, image in enumerate(images)]
    wanted = "[c, h, w] or [n, c, h, w]" if channels_at == 0 else "[h, w], [h, w, c] or [n, h, w, c]"
    kind = "tensor" if channels_at == 0 else "array"
    raise DataError(f"a {kind} of images has the shape {wanted} with 1, 3 or 4 channels, not {list(shape)}")


def _from_array(image: npt.NDArray[Any], form: PixelFormat) -> Tensor:
    layers = image[..., None] if image.ndim == 2 else image
    return _from_tensor(torch.from_numpy(np.ascontiguousarray(_numbers(layers))).permute(2, 0, 1), form)


def _numbers(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """uint8 or float32; other integers by their own white, as in a file of arrays."""
    if image.dtype.kind not in "buif":
        raise BadImage(f"it holds {image.dtype}; images are uint8, or float in 0..1")
    return image.astype(np.float32) if image.dtype.kind == "f" else eight_bit(image)


def _from_tensor(image: Tensor, form: PixelFormat) -> Tensor:
    image = image.detach()
    image = image[None] if image.ndim == 2 else image
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise BadImage(f"it holds {image.dtype}; images are uint8, or float in 0..1")
    if image.is_floating_point():
        _refuse_outside(image)
    square = tuple(image.shape[1:]) == (form.size, form.size)
    if square and image.shape[0] == form.channels:
        return image if image.dtype == torch.uint8 else image.float()
    if square and image.is_floating_point() and image.shape[0] != 4:
        return _recoloured(image.float(), form.channels)
    eight = image if image.dtype == torch.uint8 else (image.float() * 255).round().to(torch.uint8)
    return _from_raw(np.ascontiguousarray(eight.permute(1, 2, 0).cpu().numpy()), form)


def _refuse_outside(image: Tensor) -> None:
    low, high = (float(bound) for bound in image.aminmax()) if image.numel() else (0.0, 0.0)
    if not (low >= 0 and high <= 1):  # false for NaN as well
        hint = "; divide it by 255" if 1 < high <= 255 and low >= 0 else ""
        raise BadImage(f"float values from {low:g} to {high:g}; they must lie in 0..1{hint}")


def _recoloured(image: Tensor, channels: int) -> Tensor:
    """Grey repeated, or colours weighed: [channels, h, w] of [1 or 3, h, w]."""
    if channels == 3:
        return image.expand(3, -1, -1)
    weights = torch.tensor(LUMA, device=image.device)[:, None, None]
    return (image * weights).sum(0, keepdim=True)


def _as_float(image: Tensor) -> Tensor:
    return image.float() / 255 if image.dtype == torch.uint8 else image
