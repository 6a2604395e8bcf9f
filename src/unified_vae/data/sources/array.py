"""Images in a NumPy file: .npy or .npz, uint8 or float in 0..1, [n, h, w], [n, h, w, c] or [n, c, h, w]."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil

from unified_vae.core.errors import DataError
from unified_vae.core.printable import printable
from unified_vae.data.records import BadImage, Listing, RawImage, Record, Side

_SPLIT_KEYS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "test"),
}
_IMAGE_KEYS = ("images", "x", "data", "arr_0")
_LABEL_KEYS = ("labels", "label", "y", "targets")
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class _Part:
    """One array of the file: which side it is for, its images as [n, h, w(, c)], its labels."""

    prefix: str
    side: Side | None
    images: npt.NDArray[np.generic]
    labels: npt.NDArray[np.int64] | None


class ArraySource:
    """The rows of an array file, each an image."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = printable(path.name)

    @cached_property
    def _parts(self) -> list[_Part]:
        try:
            return self._opened()
        except DataError:
            raise
        except MemoryError:
            raise DataError(f"{self.path} does not fit into memory; save it as .npy, which is read in parts.") from None
        except Exception as error:  # the reader raises nearly anything on damage
            reason = str(error) or type(error).__name__
            raise DataError(
                f"{self.path} cannot be read as a NumPy file ({reason}); save plain arrays with numpy.save."
            ) from None

    def _opened(self) -> list[_Part]:
        """By its content, .npz or .npy. Pickled objects are refused: opening them would run code."""
        if zipfile.is_zipfile(self.path):
            self._refuse_too_large()
            with np.load(self.path, allow_pickle=False) as file:
                return self._parts_of_npz(file)
        array = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return [_Part("row", None, self._rows(array, self.name), None)]

    def _refuse_too_large(self) -> None:
        """An .npz is unpacked into memory, so the sizes that it tells are looked at before."""
        with zipfile.ZipFile(self.path) as file:
            expanded = sum(member.file_size for member in file.infolist())
        if expanded > psutil.virtual_memory().available:
            raise MemoryError

    def _parts_of_npz(self, file: np.lib.npyio.NpzFile) -> list[_Part]:
        keys = {key.lower(): key for key in file.files}
        split = {side: _first(keys, _split_image_keys(names)) for side, names in _SPLIT_KEYS.items()}
        if split["train"] is not None:
            return [
                self._part(file, keys, side, key, _split_label_keys(_SPLIT_KEYS[side]))
                for side, key in split.items()
                if key is not None
            ]
        key = _first(keys, _IMAGE_KEYS) or self._first_image_key(file)
        return [self._part(file, keys, None, key, _LABEL_KEYS)]

    def _part(self, file: np.lib.npyio.NpzFile, keys: dict[str, str], side: str | None, key: str,
              label_keys: Sequence[str]) -> _Part:  # fmt: skip
        images = self._rows(file[key], f"{self.name}, key {key!r}")
        label_key = _first(keys, label_keys)
        labels = None if label_key is None else _class_numbers(file[label_key], len(images))
        known_side: Side | None = None if side is None else "train" if side == "train" else "validation"
        return _Part(f"{key} row", known_side, images, labels)

    def _first_image_key(self, file: np.lib.npyio.NpzFile) -> str:
        for key in file.files:
            if file[key].ndim in (3, 4):
                return key
        raise DataError(
            f"{self.path} has no array of images (keys: {', '.join(file.files) or 'none'}); "
            "save them under the key 'images' as [n, height, width, channels]."
        )

    def _rows(self, array: npt.NDArray[np.generic], where: str) -> npt.NDArray[np.generic]:
        """The array as [n, h, w] or [n, h, w, c]."""
        if array.dtype.kind not in "buif":
            raise DataError(f"{where} holds {array.dtype}; images must be uint8, or float in 0..1.")
        if array.ndim == 3:
            return array
        if array.ndim == 4 and array.shape[3] in _CHANNELS:
            return array
        if array.ndim == 4 and array.shape[1] in _CHANNELS:
            return array.transpose(0, 2, 3, 1)
        raise DataError(
            f"{where} has shape {list(array.shape)}; images must be [n, height, width], "
            "[n, height, width, channels] or [n, channels, height, width] with 1, 3 or 4 channels."
        )

    def identity(self) -> str:
        """Hash of the whole file."""
        try:
            with self.path.open("rb") as file:
                return f"array:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror}.") from None

    def listing(self) -> Listing:
        labelled = all(part.labels is not None for part in self._parts)
        records = []
        for part in self._parts:
            for row in range(len(part.images)):
                labels = {"class": int(part.labels[row])} if labelled and part.labels is not None else {}
                records.append(Record(f"{part.prefix} {row}", part.side, labels))
        largest = max((record.labels.get("class", -1) for record in records), default=-1)
        return Listing(records, {"class": [str(value) for value in range(largest + 1)]} if labelled else {})

    def read(self, positions: Sequence[int]) -> Iterator[Callable[[], RawImage]]:
        starts = np.cumsum([0] + [len(part.images) for part in self._parts])
        for position in positions:
            number = int(np.searchsorted(starts, position, side="right")) - 1
            yield partial(eight_bit, self._parts[number].images[position - int(starts[number])])


def eight_bit(row: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """One image as uint8: floats and truth values from 0..1, uint16 from 0..65535, others from 0..255."""
    if row.dtype == np.uint8:
        return np.ascontiguousarray(row)
    sixteen_bits = row.dtype.kind == "u" and row.dtype.itemsize == 2  # of either byte order
    white = {"b": 1.0, "f": 1.0}.get(row.dtype.kind, 65535.0 if sixteen_bits else 255.0)
    values = row.astype(np.float64)
    low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    if not (low >= 0.0 and high <= white):  # false for NaN as well
        raise BadImage(f"{row.dtype} values from {low:g} to {high:g}; they must lie in 0..{white:g}, or be uint8")
    return np.rint(values * (255.0 / white)).astype(np.uint8)


def _first(keys: dict[str, str], wanted: Sequence[str]) -> str | None:
    return next((keys[key] for key in wanted if key in keys), None)


def _split_image_keys(names: Sequence[str]) -> list[str]:
    return [form.format(name) for name in names for form in ("{}", "{}_images", "x_{}", "{}_x")]


def _split_label_keys(names: Sequence[str]) -> list[str]:
    return [form.format(name) for name in names for form in ("{}_labels", "y_{}", "{}_y")]


def _class_numbers(labels: npt.NDArray[np.generic], count: int) -> npt.NDArray[np.int64] | None:
    """Labels of shape [n] or [n, 1] as class numbers; None where they are something else."""
    if labels.dtype.kind not in "ui" or labels.size != count:
        return None
    numbers = labels.reshape(-1).astype(np.int64)
    return numbers if numbers.size and numbers.min() >= 0 and numbers.max() < 100_000 else None
