"""Batches from packed images: the pixels of the order's numbers, as tensors."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unified_vae.data import resident as on_device
from unified_vae.data.loader import load
from unified_vae.data.order import Order, share
from unified_vae.data.packing.packed import PackedSplit

READ_AHEAD = 2  # batches


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


def gather(split: PackedSplit, indices: npt.NDArray[np.int64]) -> Tensor:
    """Copy images out of the pack: uint8 [n, channels, height, width], channels last in memory."""
    return torch.from_numpy(_take(split, indices)).permute(0, 3, 1, 2)


def _take(split: PackedSplit, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    return np.asarray(split.images).take(indices, axis=0)


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
    told: Callable[[str], None] = print,
    resident: Tensor | None = None,
) -> Generator[TrainBatch, None, None]:
    """The batches of steps start_step to end_step - 1, for one rank.

    Args:
        batch_size: of the global batch, over all ranks.
        workers: loader processes; any number gives the same batches. 0 reads in this process.
        pin_memory: so that the copy to a CUDA device does not wait; without workers, a thread reads and pins ahead.
        told: receives a line when loader processes had to be replaced.
        resident: the images of `resident.load_all`; batches are then gathered on its device, by no one else.

    Raises:
        LoadingFailed: loader processes died, hung or failed again and again.
    """
    order = Order(seed, len(split), batch_size, rank, world_size)
    steps = range(start_step, end_step)
    if resident is not None:
        for step in steps:
            indices = order.indices(step)
            yield TrainBatch(indices, order.epoch(step), on_device.gather(resident, torch.from_numpy(indices)))
        return
    with contextlib.closing(_images(split, order, steps, workers, pin_memory, told)) as loaded:
        for step in steps:
            yield TrainBatch(order.indices(step), order.epoch(step), next(loaded))


def _images(
    split: PackedSplit, order: Order, steps: range, workers: int, pin_memory: bool, told: Callable[[str], None]
) -> Generator[Tensor, None, None]:
    """The images of each step, uint8 [local, channels, height, width]."""
    if workers:
        with contextlib.closing(load(split, order, steps, workers, told)) as loaded:
            for pixels in loaded:
                images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
                yield images.pin_memory() if pin_memory else images
    elif pin_memory:
        yield from read_ahead(lambda step: gather(split, order.indices(step)).pin_memory(), steps)
    else:
        yield from (gather(split, order.indices(step)) for step in steps)


def read_ahead(read: Callable[[int], Tensor], steps: range) -> Generator[Tensor, None, None]:
    """`read` of each step in turn, done READ_AHEAD steps early by a thread: copies of pixels leave Python's lock."""
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader:
        waiting: deque[Future[Tensor]] = deque(reader.submit(read, step) for step in steps[:READ_AHEAD])
        try:
            for later in range(len(steps)):
                images = waiting.popleft().result()
                if later + READ_AHEAD < len(steps):
                    waiting.append(reader.submit(read, steps[later + READ_AHEAD]))
                yield images
        finally:
            for future in waiting:
                future.cancel()


def validation_batches(split: PackedSplit, *, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Tensor]:
    """Every image once over all ranks, in order: uint8 [b, channels, height, width]; the last may be smaller.

    Args:
        batch_size: of one rank.
    """
    own = np.arange(len(split))[share(len(split), rank, world_size)]
    for start in range(0, len(own), batch_size):
        yield gather(split, own[start : start + batch_size])
