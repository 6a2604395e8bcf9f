"""Batches from packed images. The order is a pure function of (seed, step): nothing of it has to be saved.

An epoch is a permutation of all images, wrapped round to a whole number of batches (as DistributedSampler
pads), so that each image is seen in each epoch. A rank takes its contiguous share of the global batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from unified_vae.core.counter import key, permutation
from unified_vae.data.packing.packed import PackedSplit

LOADER_TIMEOUT_SECONDS = 120.0
"""A loader process that is silent for so long hangs or has died: DataLoader raises instead of waiting on."""


@dataclass(frozen=True)
class TrainBatch:
    """One rank's share of a global batch.

    Attributes:
        indices: int64 [local], the images' numbers in the split.
        epoch: which pass over the images this step belongs to, from 0.
        images: uint8 [local, channels, height, width], channels last in memory.
    """

    indices: npt.NDArray[np.int64]
    epoch: int
    images: Tensor

    def pin_memory(self) -> TrainBatch:
        """Called by DataLoader, so that the copy to a CUDA device does not wait."""
        return TrainBatch(self.indices, self.epoch, self.images.pin_memory())


def steps_per_epoch(n_images: int, batch_size: int) -> int:
    """Optimizer steps that pass over all images: ceil(n / batch)."""
    return -(-n_images // batch_size)


def batch_indices(seed: int, step: int, n_images: int, batch_size: int) -> npt.NDArray[np.int64]:
    """The images of the global batch of a step, shape [batch_size]."""
    epoch, place = divmod(step, steps_per_epoch(n_images, batch_size))
    order = _epoch_order(seed, epoch, n_images)
    return order.take(range(place * batch_size, (place + 1) * batch_size), mode="wrap")


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, n_images: int) -> npt.NDArray[np.int64]:
    order = permutation(key(seed, "order", epoch), n_images)
    order.flags.writeable = False  # it is shared between calls
    return order


def share(count: int, rank: int, world_size: int) -> slice:
    """The contiguous part of `count` things that belongs to a rank; the parts differ by one at most."""
    return slice(count * rank // world_size, count * (rank + 1) // world_size)


class _StepDataset(Dataset[TrainBatch]):
    """Step number -> this rank's batch. Map-style, so DataLoader keeps the order with any workers."""

    def __init__(self, split: PackedSplit, seed: int, batch_size: int, rank: int, world_size: int) -> None:
        self.split = split
        self.seed = seed
        self.batch_size = batch_size
        self.share = share(batch_size, rank, world_size)

    def __getitem__(self, step: int) -> TrainBatch:
        indices = batch_indices(self.seed, step, len(self.split), self.batch_size)[self.share]
        epoch = step // steps_per_epoch(len(self.split), self.batch_size)
        return TrainBatch(indices, epoch, gather(self.split, indices))


def gather(split: PackedSplit, indices: npt.NDArray[np.int64]) -> Tensor:
    """Copy images out of the pack: uint8 [n, channels, height, width], channels last in memory."""
    pixels = np.asarray(split.images).take(indices, axis=0)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def train_batches(
    split: PackedSplit,
    *,
    seed: int,
    start_step: int,
    end_step: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[TrainBatch]:
    """The batches of steps start_step to end_step - 1, for one rank.

    Args:
        batch_size: of the global batch, over all ranks.
        workers: loader processes; any number gives the same batches.

    Raises:
        RuntimeError: a loader process died or hung (from DataLoader).
    """
    loader = DataLoader(
        _StepDataset(split, seed, batch_size, rank, world_size),
        sampler=range(start_step, end_step),
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
        timeout=LOADER_TIMEOUT_SECONDS if workers else 0,
    )
    yield from loader


def validation_batches(split: PackedSplit, *, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Tensor]:
    """Every image once over all ranks, in order: uint8 [b, channels, height, width]; the last may be smaller.

    Args:
        batch_size: of one rank.
    """
    own = np.arange(len(split))[share(len(split), rank, world_size)]
    for start in range(0, len(own), batch_size):
        yield gather(split, own[start : start + batch_size])
