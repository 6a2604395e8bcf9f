"""The images of a data source for a loaded model: those of its run as the run opened them, or others at its size."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from unified_vae.core.errors import ConfigError, DataError
from unified_vae.core.events import Observer
from unified_vae.data.dataset import DataSets, PackedSplit
from unified_vae.data.prepare import open_data
from unified_vae.data.sources.base import SPLITS
from unified_vae.data.sources.find import same_source
from unified_vae.inference.load import LoadedModel


def is_run_source(loaded: LoadedModel, source: str | None) -> bool:
    """Whether a source, None for the run's, is what the model's run was given, however its path is written."""
    return loaded.record is not None and (source is None or same_source(source, loaded.config.data.source))


def open_images(
    loaded: LoadedModel, source: str | None, observer: Observer, *, max_images: int | None = None
) -> DataSets:
    """The images of a source, of the model's channels; without one, those of the run.

    The run's own are opened as it asked for them (`auto` channels follow the images), so that its pack in the cache is
    used: where they changed since, their channels may be others than the model's.

    Of another source, files that cannot be used are left out and named, however many: no option says how many may be.

    Args:
        max_images: of another source, decode no more for training.

    Raises:
        DataError: they are not there, or cannot be used.
    """
    config, channels = loaded.config.data, loaded.model.channels
    if source is not None:
        config = config.replace(source=source, max_images=max_images, max_bad_fraction=1.0)
    requested: int | None = channels
    if loaded.record is not None and is_run_source(loaded, source):
        setting = loaded.record.requested.model.channels
        requested = None if setting == "auto" else setting
    data = open_data(config, loaded.model.image_size, requested, observer.phase)
    if source is not None:
        left_out = [f"left out: {bad.format_line()}" for bad in data.quarantined[1:]]  # a note names the first
        for line in (*data.notes, *left_out):
            observer.notice(line)
    return data


def open_matching_images(
    loaded: LoadedModel, source: str | None, observer: Observer, *, max_images: int | None = None
) -> DataSets:
    """`open_images` for a model to be measured on.

    Raises:
        DataError: they are not there, cannot be used, or are of other channels than the model.
    """
    try:
        data = open_images(loaded, source, observer, max_images=max_images)
    except DataError as problem:
        if source is not None:
            raise
        raise DataError(f"{problem} To measure on other images, name them with --data.") from problem
    if data.channels != loaded.model.channels:
        raise DataError(
            f"the images have {data.channels} channel(s) now and the model {loaded.model.channels}: name others with "
            "--data"
        )
    return data


@dataclass(frozen=True)
class ImageSet:
    """All images of a source in the order of their names, read from the packed cache a few at a time.

    Attributes:
        ids: name of each image, as its source names it; valid Unicode.
        splits: 0 for train, 1 for validation, as a run splits the set; uint8 [n].
        contents: 64 bits of the hash of what each image was made from, uint64 [n].
        labels: label name -> int64 [n].
        label_names: label name -> names of its values.
        positions: row of each image in its split's file, int64 [n].
        packs: the files of the two splits.
        fingerprint: of all images together.
        description: one line for the user.
    """

    ids: Sequence[str]
    splits: npt.NDArray[np.uint8]
    contents: npt.NDArray[np.uint64]
    labels: Mapping[str, npt.NDArray[np.int64]]
    label_names: Mapping[str, list[str]]
    positions: npt.NDArray[np.int64]
    packs: Sequence[PackedSplit]
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
        pixels = np.empty((len(numbers), *self.packs[0].shape[1:]), np.uint8)
        train, validation = self.packs
        with train.path.open("rb", buffering=0) as first, validation.path.open("rb", buffering=0) as second:
            for row, number in enumerate(numbers):
                file = (first, second)[self.splits[number]]
                file.seek(int(self.positions[number]) * pixels[0].nbytes)
                if file.readinto(pixels[row].data) != pixels[0].nbytes:
                    raise DataError("the packed images in the cache were cut short: start the same command again")
        return pixels

    def columns(self) -> dict[str, list[str]]:
        """Name, split and labels of each image, as text."""
        columns: dict[str, list[str]] = {"id": list(self.ids), "split": [str(SPLITS[split]) for split in self.splits]}
        for name, names in self.label_names.items():
            columns[f"label.{name}" if name in columns else name] = [names[value] for value in self.labels[name]]
        return columns


def open_image_set(loaded: LoadedModel, source: str | None, observer: Observer) -> ImageSet:
    """The images of a source at the model's size; without one, those of the model's run.

    Raises:
        ConfigError: none are named, and the model is without its run.
        DataError: they are not there, or cannot be used.
    """
    if source is None and loaded.record is None:
        raise ConfigError(f"{loaded.name} is a model without its run: name the images")
    data = open_images(loaded, source, observer)
    if data.channels != loaded.model.channels:  # as the run opened them; they have changed since
        data = open_images(replace(loaded, record=None), source, observer)
    for note in data.notes if source is None else ():  # of other sources they were said
        observer.notice(note)
    packs = (data.train, data.validation)
    ids = [name.encode("utf-8", "backslashreplace").decode() for pack in packs for name in pack.names]
    splits = np.repeat(np.arange(2, dtype=np.uint8), [len(pack) for pack in packs])
    contents = np.array([int(entry.content, 16) for entry in data.inventory.entries], dtype=np.uint64)
    order = np.array(sorted(range(len(ids)), key=lambda row: (natural_key(ids[row]), row)), dtype=np.int64)
    return ImageSet(
        ids=[ids[row] for row in order],
        splits=splits[order],
        contents=contents[order],
        labels={
            name: np.concatenate([(pack.labels or {})[name] for pack in packs])[order]
            for name in data.train.labels or {}
        },
        label_names=data.train.label_names,
        positions=np.concatenate([np.arange(len(pack)) for pack in packs])[order],
        packs=packs,
        fingerprint=data.fingerprint,
        description=data.description,
    )


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """A key by which "row 2" comes before "row 12"."""
    return [(1, int(part)) if number % 2 else (0, part) for number, part in enumerate(re.split(r"([0-9]+)", name))]
