"""All images of a data source in the order of their names, read from the packed cache a few at a time."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from unified_vae.core.errors import ConfigError, DataError
from unified_vae.core.events import Observer
from unified_vae.data.dataset import PackedSplit
from unified_vae.data.sources.base import SPLITS
from unified_vae.experiment.subject.images import open_images
from unified_vae.experiment.subject.subject import Subject


@dataclass(frozen=True)
class ImageSet:
    """The images of both sides of the split.

    Attributes:
        ids: name of each image, as its source names it; valid Unicode.
        sides: 0 to train, 1 to validate, as a run splits the set; uint8 [n].
        contents: 64 bits of the hash of what each image was made from, uint64 [n].
        labels: label name -> int64 [n].
        label_names: label name -> names of its values.
        positions: row of each image in its side's file, int64 [n].
        splits: the files of the two sides.
        fingerprint: of all images together.
        description: one line for the user.
    """

    ids: Sequence[str]
    sides: npt.NDArray[np.uint8]
    contents: npt.NDArray[np.uint64]
    labels: Mapping[str, npt.NDArray[np.int64]]
    label_names: Mapping[str, list[str]]
    positions: npt.NDArray[np.int64]
    splits: Sequence[PackedSplit]
    fingerprint: str
    description: str

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Pixels of the images with these numbers: uint8 [n, height, width, channels].

        The files are read and not mapped: what is mapped counts as memory of the process, and they may be large.

        Raises:
            DataError: the cache was cut short in the meantime.
        """
        pixels = np.empty((len(numbers), *self.splits[0].shape[1:]), np.uint8)
        train, validation = self.splits
        with train.path.open("rb", buffering=0) as first, validation.path.open("rb", buffering=0) as second:
            for row, number in enumerate(numbers):
                file = (first, second)[self.sides[number]]
                file.seek(int(self.positions[number]) * pixels[0].nbytes)
                if file.readinto(pixels[row].data) != pixels[0].nbytes:
                    raise DataError("the packed images in the cache were cut short: start the same command again")
        return pixels

    def columns(self) -> dict[str, list[str]]:
        """Name, side of the split and labels of each image, in words."""
        columns: dict[str, list[str]] = {"id": list(self.ids), "split": [str(SPLITS[side]) for side in self.sides]}
        for name, names in self.label_names.items():
            columns[f"label.{name}" if name in columns else name] = [names[value] for value in self.labels[name]]
        return columns


def open_image_set(subject: Subject, source: str | None, observer: Observer) -> ImageSet:
    """The images of a source at the model's size; without one, those of the model's run.

    Raises:
        ConfigError: none are named, and the model is without its run.
        DataError: they are not there, or cannot be used.
    """
    if source is None and subject.record is None:
        raise ConfigError(f"{subject.name} is a model without its run: name the images")
    data = open_images(subject, source, observer)
    if data.channels != subject.model.channels:  # as the run opened them; they have changed since
        data = open_images(replace(subject, record=None), source, observer)
    for note in data.notes if source is None else ():  # of other sources they were said
        observer.notice(note)
    splits = (data.train, data.validation)
    ids = [name.encode("utf-8", "backslashreplace").decode() for split in splits for name in split.names]
    sides = np.repeat(np.arange(2, dtype=np.uint8), [len(split) for split in splits])
    contents = np.array([int(entry.content, 16) for entry in data.inventory.entries], dtype=np.uint64)
    order = np.array(sorted(range(len(ids)), key=lambda row: (natural_key(ids[row]), row)), dtype=np.int64)
    return ImageSet(
        ids=[ids[row] for row in order],
        sides=sides[order],
        contents=contents[order],
        labels={
            name: np.concatenate([(split.labels or {})[name] for split in splits])[order]
            for name in data.train.labels or {}
        },
        label_names=data.train.label_names,
        positions=np.concatenate([np.arange(len(split)) for split in splits])[order],
        splits=splits,
        fingerprint=data.fingerprint,
        description=data.description,
    )


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """A key by which "row 2" comes before "row 12"."""
    return [(1, int(part)) if number % 2 else (0, part) for number, part in enumerate(re.split(r"([0-9]+)", name))]
