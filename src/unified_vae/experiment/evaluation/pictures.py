"""The images that a model is measured on: a run's validation side, or all of another source."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from unified_vae.core.errors import ConfigError, DataError
from unified_vae.core.events import Observer
from unified_vae.data.batches import gather
from unified_vae.data.dataset import DataSets, PackedSplit, recorded_contents
from unified_vae.experiment.subject.images import is_own, open_images, refuse_other_channels
from unified_vae.experiment.subject.subject import Subject

MOST_VALUES = 1 << 22  # pixel values of a batch
BATCH = 64


@dataclass(frozen=True)
class Pictures:
    """Images in their order.

    Attributes:
        splits: where they lie, one behind the other.
        count: how many of them are looked at.
        description: in words, with the side.
        contents: the beginning of each image's content hash, whatever its size here.
    """

    splits: Sequence[PackedSplit]
    count: int
    description: str
    contents: Sequence[str]

    @property
    def size(self) -> int:
        """Height and width in pixels."""
        return self.splits[0].shape[1]

    @property
    def channels(self) -> int:
        """1 or 3."""
        return self.splits[0].shape[3]

    def batches(self, most: int | None = None) -> Iterator[Tensor]:
        """The first `most` images: uint8 [b, channels, size, size]. The same portions on every machine."""
        left = self.count if most is None else min(most, self.count)
        step = max(1, min(BATCH, MOST_VALUES // (self.channels * self.size**2)))
        for split in self.splits:
            own = min(left, len(split))
            for start in range(0, own, step):
                yield gather(split, np.arange(start, min(start + step, own)))
            left -= own

    def fingerprint(self) -> str:
        """SHA-256 of the pixels and their shape: the same for the same images, whatever source they came from."""
        digest = hashlib.sha256(f"{self.count} {self.channels} {self.size}\n".encode())
        for batch in self.batches():
            digest.update(np.ascontiguousarray(batch.numpy()).tobytes())
        return digest.hexdigest()

    def identity(self) -> str:
        """SHA-256 of which images these are, whatever size they were brought to."""
        return hashlib.sha256("\n".join(self.contents).encode()).hexdigest()

    def factors(self) -> dict[str, npt.NDArray[np.int64]]:
        """Label name -> number of each image; empty where the source has none."""
        labels = [split.labels or {} for split in self.splits]
        names = [name for name in labels[0] if all(name in own for own in labels)]
        return {name: np.concatenate([own[name] for own in labels])[: self.count] for name in names}


def open_pictures(
    subject: Subject, source: str | None, most: int | None, observer: Observer, *, whole: bool = False
) -> Pictures:
    """The validation images of the subject's run; of another source all images.

    Args:
        source: as after --data.
        most: look at no more.
        whole: take all images also where `source` is the run's.

    Raises:
        ConfigError: a model without its run, and no source.
        DataError: they are gone, or of other channels than the model.
    """
    known = is_own(subject, source)
    own = known and (source is None or not whole)
    if source is None and subject.record is None:
        raise ConfigError(f"{subject.name} is a model without its run: name the images to measure on with --data")
    data = _opened(subject, None if own else source, most, observer)
    refuse_other_channels(data, subject)
    if own and subject.record is not None and subject.record.data["fingerprint"] != data.fingerprint:
        observer.notice("the run's images changed since it began: some of these may have been trained on")
    splits = [data.validation] if own else [data.train, data.validation]
    there = sum(map(len, splits))
    count = there if most is None else min(most, there)
    part = "" if count == there else f"the first {count:,} of "
    side = "the run's validation images" if own else "all images"
    sides = ("validation",) if own else ("train", "validation")
    contents = [entry.content for name in sides for entry in data.inventory.entries if entry.split == name][:count]
    if not own:
        _tell_of_training(subject, contents, known, observer)
    return Pictures(splits, count, f"{part}{side} of {data.description}", contents)


def _opened(subject: Subject, source: str | None, most: int | None, observer: Observer) -> DataSets:
    try:
        return open_images(subject, source, observer, max_images=most)  # of others no more are decoded
    except DataError as problem:
        if source is not None:
            raise
        raise DataError(f"{problem} To measure on other images, name them with --data.") from problem


def _tell_of_training(subject: Subject, contents: Sequence[str], named: bool, observer: Observer) -> None:
    """Say where images of another source are some that the run learnt from.

    Args:
        named: the source is the run's.
    """
    if subject.run_dir is None:
        return
    trained = recorded_contents(subject.run_dir, "train")
    if count := sum(content in trained for content in contents):
        observer.notice(f"{subject.name} was trained on {count:,} of these {len(contents):,} images")
    elif named and not trained:
        observer.notice(f"{subject.name} was trained on some of these images")
