"""Batches from packed images: the pixels of the order's numbers, as tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unified_vae.data import resident as on_device
from unified_vae.data.loader import load
from unified_vae.data.order import Order, share
from unified_vae.data.packing.packed import PackedSplit


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
        pin_memory: so that the copy to a CUDA device does not wait.
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
    with contextlib.closing(load(split, order, steps, workers, told)) as loaded:
        for step in steps:
            indices = order.indices(step)
            pixels = next(loaded) if workers else _take(split, indices)
            images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
            yield TrainBatch(indices, order.epoch(step), images.pin_memory() if pin_memory else images)


def validation_batches(split: PackedSplit, *, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Tensor]:
    """Every image once over all ranks, in order: uint8 [b, channels, height, width]; the last may be smaller.

    Args:
        batch_size: of one rank.
    """
    own = np.arange(len(split))[share(len(split), rank, world_size)]
    for start in range(0, len(own), batch_size):
        yield gather(split, own[start : start + batch_size])
