"""Batches from packed images: their order, reading ahead, and images held in a GPU's own memory.

The order is a pure function of (seed, step), so that nothing of it has to be saved. An epoch is a permutation of
all images, wrapped round to a whole number of batches (as DistributedSampler pads), so that each image is seen in
each epoch. A rank takes its contiguous slice of the global batch.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unified_vae.core.device import to_device
from unified_vae.core.rng import key, permutation
from unified_vae.data.dataset import PackedSplit

READ_AHEAD = 2  # batches
MAX_MEMORY_FRACTION = 0.25  # of the free memory for cached images: the rest is for the network, whose need is unknown
COPY_BYTES = 256 * 2**20  # copied to the device at a time


def steps_per_epoch(n_images: int, batch_size: int) -> int:
    """Return how many optimizer steps pass over all images: ceil(n / batch)."""
    return -(-n_images // batch_size)


def batch_indices(seed: int, step: int, n_images: int, batch_size: int) -> npt.NDArray[np.int64]:
    """Return the images of the global batch of a step, shape [batch_size]."""
    epoch, offset = divmod(step, steps_per_epoch(n_images, batch_size))
    order = _epoch_order(seed, epoch, n_images)
    return order.take(np.arange(offset * batch_size, (offset + 1) * batch_size), mode="wrap")


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, n_images: int) -> npt.NDArray[np.int64]:
    order = permutation(key(seed, "order", epoch), n_images)
    order.flags.writeable = False  # it is shared between calls
    return order


def rank_slice(count: int, rank: int, world_size: int) -> slice:
    """Return the contiguous slice of `count` items that belongs to a rank; their sizes differ by one at most."""
    return slice(count * rank // world_size, count * (rank + 1) // world_size)


@dataclass(frozen=True)
class TrainBatch:
    """One rank's slice of a global batch.

    Attributes:
        indices: int64 [local], the images' numbers in the split.
        epoch: which pass over the images this step belongs to, from 0.
        images: uint8 [local, channels, height, width], channels last in memory.
    """

    indices: npt.NDArray[np.int64]
    epoch: int
    images: Tensor


def gather(split: PackedSplit, indices: npt.NDArray[np.int64]) -> Tensor:
    """Copy images out of the pack: uint8 [n, channels, height, width], channels last in memory."""
    return torch.from_numpy(np.asarray(split.images).take(indices, axis=0)).permute(0, 3, 1, 2)


def train_batches(
    split: PackedSplit,
    *,
    seed: int,
    start_step: int,
    end_step: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
    cached_images: Tensor | None = None,
) -> Generator[TrainBatch, None, None]:
    """Yield the batches of steps start_step to end_step - 1, for one rank.

    Args:
        batch_size: of the global batch, over all ranks.
        pin_memory: so that the copy to a CUDA device does not wait; a thread reads and pins ahead.
        cached_images: the images of `cache_on_device`; batches are then gathered on its device.
    """
    steps = range(start_step, end_step)
    local = rank_slice(batch_size, rank, world_size)

    def indices(step: int) -> npt.NDArray[np.int64]:
        return batch_indices(seed, step, len(split), batch_size)[local]

    images: Generator[Tensor, None, None]
    if cached_images is not None:
        images = (gather_cached(cached_images, torch.from_numpy(indices(step))) for step in steps)
    elif pin_memory:
        images = read_ahead(lambda step: gather(split, indices(step)).pin_memory(), steps)
    else:
        images = (gather(split, indices(step)) for step in steps)
    with contextlib.closing(images):
        for step in steps:
            yield TrainBatch(indices(step), step // steps_per_epoch(len(split), batch_size), next(images))


def read_ahead(read: Callable[[int], Tensor], steps: range) -> Generator[Tensor, None, None]:
    """Yield `read` of each step, done READ_AHEAD steps early by a thread: copying pixels releases the GIL."""
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader:
        pending: deque[Future[Tensor]] = deque(reader.submit(read, step) for step in steps[:READ_AHEAD])
        try:
            for position in range(len(steps)):
                images = pending.popleft().result()
                if position + READ_AHEAD < len(steps):
                    pending.append(reader.submit(read, steps[position + READ_AHEAD]))
                yield images
        finally:
            for future in pending:
                future.cancel()


def validation_batches(split: PackedSplit, *, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Tensor]:
    """Yield every image once over all ranks, in order: uint8 [b, channels, height, width]; the last may be smaller.

    Args:
        batch_size: of one rank.
    """
    local = np.arange(len(split))[rank_slice(len(split), rank, world_size)]
    for start in range(0, len(local), batch_size):
        yield gather(split, local[start : start + batch_size])


def fits_on_device(split: PackedSplit, free_bytes: int) -> bool:
    """Return whether the images fit into MAX_MEMORY_FRACTION of the free memory."""
    return int(np.prod(split.shape)) <= MAX_MEMORY_FRACTION * free_bytes


def cache_on_device(split: PackedSplit, device: torch.device) -> Tensor:
    """Copy all images to the device as the pack has them, uint8 [n, height, width, channels].

    Batches gathered from them are the same bits as those from the pack.

    Raises:
        torch.OutOfMemoryError: they do not fit after all.
    """
    images = torch.empty(split.shape, dtype=torch.uint8, device=device)
    chunk_size = max(1, COPY_BYTES // int(np.prod(split.shape[1:])))
    for first in range(0, len(split), chunk_size):
        chunk = np.array(split.images[first : first + chunk_size])  # a copy, since the map is read-only
        images[first : first + len(chunk)] = torch.from_numpy(chunk)
    return images


def gather_cached(images: Tensor, indices: Tensor) -> Tensor:
    """Gather images by number: uint8 [n, channels, height, width], channels last in memory, on the device."""
    return images.index_select(0, to_device(indices, images.device)).permute(0, 3, 1, 2)
