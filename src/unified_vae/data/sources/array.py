"""Images in a NumPy file: .npy or .npz, uint8 or float in 0..1, [n, h, w], [n, h, w, c] or [n, c, h, w]."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import psutil

from unified_vae.core.errors import DataError, escape_name
from unified_vae.data.sources.base import BadImage, Listing, RawImage, Record, Split

_SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "test"),
}
_SPLIT_IMAGE_KEYS = ("{}", "{}_images", "x_{}", "{}_x")
_SPLIT_LABEL_KEYS = ("{}_labels", "y_{}", "{}_y")
_IMAGE_KEYS = ("images", "x", "data", "arr_0")
_LABEL_KEYS = ("labels", "label", "y", "targets")
_CHANNELS = (1, 3, 4)


class _Part(NamedTuple):
    """One array of the file: its split, its images as [n, h, w(, c)], its class numbers."""

    prefix: str
    split: Split | None
    images: npt.NDArray[np.generic]
    labels: npt.NDArray[np.int64] | None


class ArraySource:
    """The rows of an array file, each an image."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = escape_name(path.name)

    @cached_property
    def _parts(self) -> list[_Part]:
        """The arrays of the file, .npz or .npy by its content. Pickled objects are refused: opening them runs code."""
        try:
            if not zipfile.is_zipfile(self.path):
                array = np.load(self.path, mmap_mode="r", allow_pickle=False)
                return [_Part("row", None, self._as_rows(array, self.name), None)]
            with zipfile.ZipFile(self.path) as packed:  # an .npz is unpacked into memory, so sizes are checked before
                if sum(member.file_size for member in packed.infolist()) > psutil.virtual_memory().available:
                    raise MemoryError
            with np.load(self.path, allow_pickle=False) as file:
                return self._npz_parts(file)
        except DataError:
            raise
        except MemoryError:
            raise DataError(f"{self.path} does not fit into memory; save it as .npy, which is read in parts.") from None
        except Exception as error:  # the reader raises nearly anything on damage
            reason = str(error) or type(error).__name__
            raise DataError(
                f"{self.path} cannot be read as a NumPy file ({reason}); save plain arrays with numpy.save."
            ) from None

    def _npz_parts(self, file: np.lib.npyio.NpzFile) -> list[_Part]:
        """The arrays for training and validation where their keys say so, else the first array of images."""
        keys = {key.lower(): key for key in file.files}

        def find(names: Sequence[str], forms: Sequence[str] = ("{}",)) -> str | None:
            candidates = (form.format(name) for name in names for form in forms)
            return next((keys[key] for key in candidates if key in keys), None)

        def part(split: Split | None, key: str, label_key: str | None) -> _Part:
            images = self._as_rows(file[key], f"{self.name}, key {key!r}")
            labels = None if label_key is None else _class_numbers(file[label_key], len(images))
            return _Part(f"{key} row", split, images, labels)

        if find(_SPLIT_NAMES["train"], _SPLIT_IMAGE_KEYS) is not None:
            return [
                part(split, key, find(names, _SPLIT_LABEL_KEYS))
                for split, names in _SPLIT_NAMES.items()
                if (key := find(names, _SPLIT_IMAGE_KEYS)) is not None
            ]
        key = find(_IMAGE_KEYS) or next((key for key in file.files if file[key].ndim in (3, 4)), None)
        if key is None:
            raise DataError(
                f"{self.path} has no array of images (keys: {', '.join(file.files) or 'none'}); "
                "save them under the key 'images' as [n, height, width, channels]."
            )
        return [part(None, key, find(_LABEL_KEYS))]

    def _as_rows(self, array: npt.NDArray[np.generic], where: str) -> npt.NDArray[np.generic]:
        """The array as [n, h, w] or [n, h, w, c]."""
        if array.dtype.kind not in "buif":
            raise DataError(f"{where} holds {array.dtype}; images must be uint8, or float in 0..1.")
        if array.ndim == 3 or (array.ndim == 4 and array.shape[3] in _CHANNELS):
            return array
        if array.ndim == 4 and array.shape[1] in _CHANNELS:
            return array.transpose(0, 2, 3, 1)
        raise DataError(
            f"{where} has shape {list(array.shape)}; images must be [n, height, width], "
            "[n, height, width, channels] or [n, channels, height, width] with 1, 3 or 4 channels."
        )

    def identity(self) -> str:
        """Return a hash of the whole file."""
        try:
            with self.path.open("rb") as file:
                return f"array:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror}.") from None

    def listing(self) -> Listing:
        labeled = all(part.labels is not None for part in self._parts)
        records = []
        for prefix, split, images, labels in self._parts:
            for row in range(len(images)):
                number = {"class": int(labels[row])} if labeled and labels is not None else {}
                records.append(Record(f"{prefix} {row}", split, number))
        largest = max((record.labels.get("class", -1) for record in records), default=-1)
        return Listing(records, {"class": [str(value) for value in range(largest + 1)]} if labeled else {})

    def read(self, positions: Sequence[int]) -> Iterator[Callable[[], RawImage]]:
        starts = np.cumsum([0] + [len(part.images) for part in self._parts])
        for position in positions:
            number = int(np.searchsorted(starts, position, side="right")) - 1
            yield partial(to_uint8, self._parts[number].images[position - int(starts[number])])


def to_uint8(row: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """Return one image as uint8: floats and booleans from 0..1, uint16 from 0..65535, others from 0..255.

    Raises:
        BadImage: a value lies outside.
    """
    if row.dtype == np.uint8:
        return np.ascontiguousarray(row)
    sixteen_bits = row.dtype.kind == "u" and row.dtype.itemsize == 2  # of either byte order
    white = {"b": 1.0, "f": 1.0}.get(row.dtype.kind, 65535.0 if sixteen_bits else 255.0)
    values = row.astype(np.float64)
    low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    if not (low >= 0.0 and high <= white):  # false for NaN as well
        raise BadImage(f"{row.dtype} values from {low:g} to {high:g}; they must lie in 0..{white:g}, or be uint8")
    return np.rint(values * (255.0 / white)).astype(np.uint8)


def _class_numbers(labels: npt.NDArray[np.generic], count: int) -> npt.NDArray[np.int64] | None:
    """Labels of shape [n] or [n, 1] as class numbers; None where they are something else."""
    if labels.dtype.kind not in "ui" or labels.size != count:
        return None
    numbers = labels.reshape(-1).astype(np.int64)
    return numbers if numbers.size and numbers.min() >= 0 and numbers.max() < 100_000 else None
