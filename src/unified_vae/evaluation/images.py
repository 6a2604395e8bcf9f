"""The images that a model is measured on: the validation images of its run, or all of another source."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from unified_vae.core.errors import ConfigError
from unified_vae.core.events import Observer
from unified_vae.data.batches import gather
from unified_vae.data.dataset import PackedSplit, recorded_contents
from unified_vae.inference.image_set import is_run_source, open_matching_images
from unified_vae.inference.load import LoadedModel

MAX_BATCH_VALUES = 1 << 22  # pixel values of a batch
MAX_BATCH = 64


@dataclass(frozen=True)
class EvaluationImages:
    """Images in a fixed order.

    Attributes:
        splits: where they lie, one behind the other.
        count: how many of them are used.
        description: in words.
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

    @property
    def batch_size(self) -> int:
        """Images at once, the same on every machine."""
        return max(1, min(MAX_BATCH, MAX_BATCH_VALUES // (self.channels * self.size**2)))

    def batches(self, limit: int | None = None) -> Iterator[Tensor]:
        """Yield the first `limit` images, all unless given: uint8 [b, channels, size, size]."""
        left = self.count if limit is None else min(limit, self.count)
        for split in self.splits:
            end = min(left, len(split))
            for start in range(0, end, self.batch_size):
                yield gather(split, np.arange(start, min(start + self.batch_size, end)))
            left -= end

    def pixel_hash(self) -> str:
        """Return the SHA-256 of the pixels and their shape, which is the same whatever source they came from."""
        digest = hashlib.sha256(f"{self.count} {self.channels} {self.size}\n".encode())
        for batch in self.batches():
            digest.update(np.ascontiguousarray(batch.numpy()).tobytes())
        return digest.hexdigest()

    def content_hash(self) -> str:
        """Return the SHA-256 of which images these are, whatever size they were brought to."""
        return hashlib.sha256("\n".join(self.contents).encode()).hexdigest()

    def factors(self) -> dict[str, npt.NDArray[np.int64]]:
        """Return label name -> number of each image; empty where the source has none."""
        labels = [split.labels or {} for split in self.splits]
        names = [name for name in labels[0] if all(name in each for each in labels)]
        return {name: np.concatenate([each[name] for each in labels])[: self.count] for name in names}


def open_evaluation_images(
    loaded: LoadedModel, source: str | None, limit: int | None, observer: Observer, *, whole: bool = False
) -> EvaluationImages:
    """Open the validation images of the model's run; of another source all images.

    Says where images of another source are among those that the run was trained on.

    Args:
        source: as after --data.
        limit: use no more images; None uses all.
        whole: take all images also where `source` is the run's.

    Raises:
        ConfigError: a model without its run, and no source.
        DataError: they are gone, or of other channels than the model.
    """
    from_run = is_run_source(loaded, source)
    validation_only = from_run and (source is None or not whole)
    if source is None and loaded.record is None:
        raise ConfigError(f"{loaded.name} is a model without its run: name the images to measure on with --data")
    # of another source no more than `limit` are decoded
    data = open_matching_images(loaded, None if validation_only else source, observer, max_images=limit)
    if validation_only and loaded.record is not None and loaded.record.data["fingerprint"] != data.fingerprint:
        observer.notice("the run's images changed since it began: some of these may have been trained on")
    sides = {"validation": data.validation} if validation_only else {"train": data.train, "validation": data.validation}
    available = sum(map(len, sides.values()))
    count = available if limit is None else min(limit, available)
    part = "" if count == available else f"the first {count:,} of "
    which = "the run's validation images" if validation_only else "all images"
    entries = [entry for side in sides for entry in data.inventory.entries if entry.split == side][:count]
    if not validation_only and loaded.run_dir is not None:
        trained = recorded_contents(loaded.run_dir, "train")
        if overlap := sum(entry.content in trained or entry.pixels in trained for entry in entries):
            observer.notice(f"{loaded.name} was trained on {overlap:,} of these {len(entries):,} images")
        elif from_run and not trained:
            observer.notice(f"{loaded.name} was trained on some of these images")
    contents = [entry.content for entry in entries]
    return EvaluationImages(list(sides.values()), count, f"{part}{which} of {data.description}", contents)
