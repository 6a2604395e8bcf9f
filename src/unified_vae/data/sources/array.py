"""Images in a NumPy file: .npy or .npz, of integers or floats, [n, h, w], [n, h, w, c] or [n, c, h, w]."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil

from unified_vae.core.errors import DataError, escape_name
from unified_vae.data.sources.base import Listing, Loader, Part, PartedSource, Split, hash_file

_SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "test"),
}
_SPLIT_IMAGE_KEYS = ("{}", "{}_images", "x_{}", "{}_x")
_SPLIT_LABEL_KEYS = ("{}_labels", "y_{}", "{}_y")
_IMAGE_KEYS = ("images", "x", "data", "arr_0")
_LABEL_KEYS = ("labels", "label", "y", "targets")
_CHANNELS = (1, 3, 4)
MAX_CLASSES = 100_000  # larger labels are no numbers of classes


class ArraySource(PartedSource):
    """The rows of an array file, each an image."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = escape_name(path.name)
        self._notes: list[str] = []

    @cached_property
    def parts(self) -> list[Part]:
        """The arrays of the file, .npz or .npy by its content. Pickled objects are refused: opening them runs code."""
        try:
            if not zipfile.is_zipfile(self.path):
                array = np.load(self.path, mmap_mode="r", allow_pickle=False)
                return [Part("row", None, self._as_rows(array, self.name), None)]
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

    def _npz_parts(self, file: np.lib.npyio.NpzFile) -> list[Part]:
        """The arrays for training and validation where their keys say so, else the first array of images."""
        keys = {key.lower(): key for key in file.files}

        def find(names: Sequence[str], forms: Sequence[str] = ("{}",)) -> str | None:
            candidates = (form.format(name) for name in names for form in forms)
            return next((keys[key] for key in candidates if key in keys), None)

        def part(split: Split | None, key: str, label_key: str | None) -> Part:
            images = self._as_rows(file[key], f"{self.name}, key {key!r}")
            labels = None if label_key is None else file[label_key]  # of shape [n] or [n, 1]
            if labels is not None:
                is_classes = labels.dtype.kind in "ui" and labels.size == len(images) > 0
                is_classes = is_classes and labels.min() >= 0 and labels.max() < MAX_CLASSES
                labels = labels.reshape(-1).astype(np.int64) if is_classes else None
            return Part(f"{key} row", split, images, labels)

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
        """The array as [n, h, w] or [n, h, w, c], with a note where its shape may be read in another way."""
        if array.dtype.kind not in "buif":
            raise DataError(f"{where} holds {array.dtype}; images must be integers or floats.")
        shape = list(array.shape)
        if array.ndim == 3:
            if shape[0] in _CHANNELS or shape[2] in _CHANNELS:
                self._notes.append(
                    f"{where} of shape {shape} is read as {shape[0]:,} gray images, not as one in color."
                )
            return array
        if array.ndim == 4 and (shape[3] in _CHANNELS or shape[1] in _CHANNELS):
            last = shape[3] in _CHANNELS
            if last and shape[1] in _CHANNELS:
                self._notes.append(f"{where} of shape {shape} is read as [n, height, width, channels].")
            if shape[3 if last else 1] == 4:
                self._notes.append(
                    f"The fourth channel of {where} is read as transparency. If it is not, save the first three alone."
                )
            return array if last else array.transpose(0, 2, 3, 1)
        raise DataError(
            f"{where} has shape {list(array.shape)}; images must be [n, height, width], "
            "[n, height, width, channels] or [n, channels, height, width] with 1, 3 or 4 channels."
        )

    def identity(self) -> str:
        """Return a hash of the whole file."""
        try:
            return f"array:{hash_file(self.path)}"
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror}.") from None

    def listing(self) -> Listing:
        """See `Source.listing`; with notes on shapes that may be read in another way."""
        return replace(super().listing(), notes=self._notes)

    def class_names(self) -> list[str]:
        largest = max((int(np.max(part.labels)) for part in self.parts if part.labels is not None), default=-1)
        return [str(value) for value in range(largest + 1)]

    def loader(self, items: npt.NDArray[np.generic], index: int) -> Loader:
        return partial(np.array, items[index])
