"""torch.distributed, and nothing of it anywhere else: the ranks of a run and what they exchange.

`torchrun` starts one process per device; a plain start is a world of one, for which every collective here returns its
input.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from unified_vae.core.device import ComputeDevice, choose_device, choose_dtype, torch_flags

T = TypeVar("T")

COLLECTIVE_TIMEOUT = timedelta(minutes=30)  # a validation or a save on one rank may take minutes
PREPARATION_TIMEOUT = timedelta(days=2)  # one rank packs images or downloads weights, the others wait
BUCKET_BYTES = 32 * 2**20  # of gradients that travel together: few messages, little memory beside them


@dataclass(frozen=True)
class Runtime(ComputeDevice):
    """Where and how this process computes, and its place among the ranks.

    Attributes:
        rank: of this process among `world_size`.
        control: the group in which ranks agree on what to do next; on the CPU, so that asking does not wait for the
            device.
    """

    rank: int = 0
    world_size: int = 1
    control: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def single_process(self) -> Runtime:
        """The same without the other ranks."""
        return replace(self, rank=0, world_size=1, control=None)

    def all_reduce_gradients(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over all ranks; they travel in buckets.

        Not by DistributedDataParallel, which exchanges gradients while they are computed: a rank that runs out of
        memory there leaves the others waiting. Here all agree first that every one has its gradients.
        """
        if self.world_size == 1:
            return
        bucket: list[Tensor] = []
        for number, tensor in enumerate(tensors):
            bucket.append(tensor)
            if sum(member.nbytes for member in bucket) < BUCKET_BYTES and number < len(tensors) - 1:
                continue
            flat = torch.cat([member.flatten() for member in bucket])
            dist.all_reduce(flat)
            flat /= self.world_size
            for member, part in zip(bucket, flat.split([member.numel() for member in bucket]), strict=True):
                member.copy_(part.view(member.shape))
            bucket = []

    def all_reduce_mean(self, values: Tensor) -> Tensor:
        """The mean of `values` over all ranks."""
        if self.world_size > 1:
            dist.all_reduce(values)
            values /= self.world_size
        return values

    def all_reduce_sum_(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over all ranks."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def all_reduce_max(self, flags: list[int]) -> list[int]:
        """The largest value of each flag over all ranks, so that all act at the same step."""
        if self.world_size == 1:
            return flags
        shared = torch.tensor(flags)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX, group=self.control)
        return [int(flag) for flag in shared.tolist()]

    def broadcast_object(self, value: T) -> T:
        """The main process's value, on every rank."""
        if self.world_size == 1:
            return value
        box: list[T] = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def gather_objects(self, value: T) -> list[T]:
        """The values of all ranks, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world_size > 1:
            dist.barrier(group=self.control)

    def describe(self) -> str:
        """Device, precision and number of ranks, for the user."""
        world = f", {self.world_size} processes" if self.world_size > 1 else ""
        return f"{super().describe()}{world}"


def is_peer_lost(error: BaseException) -> bool:
    """Whether a collective failed because another rank has ended: so say gloo, NCCL and the store."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "NCCL", "by peer"))


@contextmanager
def open_runtime(device: str, precision: str, deterministic: bool = False) -> Iterator[Runtime]:
    """The runtime of this process; joins the other ranks under `torchrun`, and leaves them at the end.

    Flags of torch that this sets are put back afterwards.

    Args:
        deterministic: refuse kernels whose bits differ from run to run.

    Raises:
        ConfigError, EnvironmentProblem: there is no such device or precision here.
    """
    rank = int(os.environ.get("RANK", 0))
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    chosen = choose_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    dtype = choose_dtype(precision, chosen)
    control: dist.ProcessGroup | None = None
    with torch_flags(chosen, deterministic):
        if world_size > 1:
            dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=COLLECTIVE_TIMEOUT)
            group = dist.new_group(backend="gloo", timeout=PREPARATION_TIMEOUT)
            control = group if isinstance(group, dist.ProcessGroup) else None
        try:
            yield Runtime(chosen, dtype, rank=rank, world_size=world_size, control=control)
        finally:
            if world_size > 1:
                dist.destroy_process_group()
