"""All images of a data source in the order of their names, read from the pack a few at a time.

The files are read and not mapped into memory: what is mapped counts as memory of the process, and a pack may be large.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType

import numpy as np
import numpy.typing as npt

from unified_vae.core.errors import ConfigError, DataError
from unified_vae.data.open import DataSets
from unified_vae.data.packing.packed import PackedSplit
from unified_vae.experiment.subject.images import open_images
from unified_vae.experiment.subject.subject import Subject
from unified_vae.training.observers import Observer


@dataclass(frozen=True)
class WholeSet:
    """The images of both sides of the split.

    Attributes:
        ids: name of each image, as its source names it; valid Unicode.
        sides: 0 to train, 1 to validate, as a run splits the set; uint8 [n].
        contents: 64 bits of the hash of what each image was made from, uint64 [n].
        labels: label name -> int64 [n].
        label_names: label name -> names of its values.
        places: row of each image in its side's file, int64 [n].
        splits: the files of the two sides.
        fingerprint: of all images together.
        description: one line for the user.
    """

    ids: Sequence[str]
    sides: npt.NDArray[np.uint8]
    contents: npt.NDArray[np.uint64]
    labels: dict[str, npt.NDArray[np.int64]]
    label_names: dict[str, list[str]]
    places: npt.NDArray[np.int64]
    splits: Sequence[PackedSplit]
    fingerprint: str
    description: str

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, data: DataSets) -> WholeSet:
        """Both sides of what was opened, as one."""
        splits = (data.train, data.validation)
        ids = [_valid(name) for split in splits for name in split.names]
        sides = np.repeat(np.arange(2, dtype=np.uint8), [len(split) for split in splits])
        places = np.concatenate([np.arange(len(split)) for split in splits])
        contents = np.array([int(entry.content, 16) for entry in data.inventory.entries], dtype=np.uint64)
        order = np.array(sorted(range(len(ids)), key=lambda row: (natural(ids[row]), row)), dtype=np.int64)
        labels = {
            name: np.concatenate([(split.labels or {})[name] for split in splits])[order]
            for name in data.train.labels or {}
        }
        return cls(
            ids=[ids[row] for row in order],
            sides=sides[order],
            contents=contents[order],
            labels=labels,
            label_names=data.train.label_names,
            places=places[order],
            splits=splits,
            fingerprint=data.fingerprint,
            description=data.description,
        )


class Rows:
    """Reads images of a `WholeSet`. Use as a context manager."""

    def __init__(self, images: WholeSet) -> None:
        self.images = images
        self.shape = images.splits[0].shape[1:]
        self._stack = ExitStack()
        self._files = [self._stack.enter_context(split.path.open("rb", buffering=0)) for split in images.splits]

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stack.close()

    def take(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Pixels of the images with these numbers: uint8 [n, height, width, channels].

        Raises:
            DataError: the pack was cut short in the meantime.
        """
        pixels = np.empty((len(numbers), *self.shape), np.uint8)
        for row, number in enumerate(numbers):
            file, place = self._files[self.images.sides[number]], int(self.images.places[number])
            file.seek(place * pixels[0].nbytes)
            if file.readinto(pixels[row].data) != pixels[0].nbytes:
                raise DataError("the packed images in the cache were cut short: start the same command again")
        return pixels


def open_whole(subject: Subject, source: str | None, observer: Observer) -> WholeSet:
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
    return WholeSet.of(data)


def natural(name: str) -> list[tuple[int, int | str]]:
    """A key by which "row 2" comes before "row 12"."""
    return [(1, int(part)) if number % 2 else (0, part) for number, part in enumerate(_NUMBER.split(name))]


def _valid(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


_NUMBER = re.compile(r"([0-9]+)")
