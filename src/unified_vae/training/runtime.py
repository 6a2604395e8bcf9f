"""Devices, precision and torch.distributed, and nothing of them anywhere else.

`torchrun` starts one process a device; a plain start is a world of one, for which every collective here
returns its input.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from unified_vae.config.training import Precision
from unified_vae.core.errors import ConfigError, EnvironmentProblem
from unified_vae.training.container_memory import left_in_container
from unified_vae.training.host_memory import keep_freed_memory, return_freed_memory
from unified_vae.training.observers import Memory

T = TypeVar("T")

COLLECTIVE_TIMEOUT = timedelta(minutes=30)  # a validation or a save on one rank may take minutes
BUNDLE_BYTES = 32 * 2**20  # of gradients that travel together: few messages, little memory beside them
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
CPU_BF16 = ("avx512_bf16", "amx_bf16")  # of torch.cpu.get_capabilities; other CPUs were not measured
PREPARATION_TIMEOUT = timedelta(days=2)  # one rank packs images or downloads weights, the others wait


@dataclass(frozen=True)
class Runtime:
    """Where and how this process computes.

    Attributes:
        device: this process's device.
        dtype: the network's arithmetic under autocast; float32 means no autocast.
        rank: number of this process among `world_size`.
        control: the group in which processes agree on what to do next; on the CPU, so that asking does not
            wait for the device.
        layout: order in memory of the network's images and weights.
    """

    device: torch.device
    dtype: torch.dtype
    rank: int = 0
    world_size: int = 1
    control: dist.ProcessGroup | None = None
    layout: torch.memory_format = torch.contiguous_format

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    @property
    def sums_dtype(self) -> torch.dtype:
        """float64, but float32 on MPS, which lacks it."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    @property
    def reading_waits(self) -> bool:
        """Whether the host has to wait for the device to read a number from it."""
        return self.device.type != "cpu"

    @property
    def fused(self) -> bool:
        """Whether the fused optimizers, which can skip an update on the device, are used."""
        return self.device.type in ("cpu", "cuda")

    def laid_out(self, memory_format: str) -> Runtime:
        """The same with images and weights in the order that `training.memory_format` names."""
        return replace(self, layout=LAYOUTS[memory_format])

    def alone(self) -> Runtime:
        """The same without the other processes."""
        return replace(self, rank=0, world_size=1, control=None)

    def autocast(self) -> AbstractContextManager[None]:
        """The network's arithmetic."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor becomes its mean over all processes; they travel in bundles.

        Not by DistributedDataParallel, which exchanges gradients while they are computed: a process that runs out of
        memory there leaves the others waiting. Here all agree first that every one has its gradients.
        """
        if self.world_size == 1:
            return
        for bundle in _bundles(tensors):
            together = torch.cat([tensor.flatten() for tensor in bundle])
            dist.all_reduce(together)
            together /= self.world_size
            parts = together.split([tensor.numel() for tensor in bundle])
            for tensor, part in zip(bundle, parts, strict=True):
                tensor.copy_(part.view(tensor.shape))

    def mean(self, values: Tensor) -> Tensor:
        """The mean of `values` over all processes."""
        if self.world_size > 1:
            dist.all_reduce(values)
            values /= self.world_size
        return values

    def sum_in_place(self, tensors: Iterable[Tensor]) -> None:
        """Each tensor becomes its sum over all processes."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def agree(self, flags: list[int]) -> list[int]:
        """Each flag becomes its largest value over all processes, so that all act at the same step."""
        if self.world_size == 1:
            return flags
        shared = torch.tensor(flags)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX, group=self.control)
        return [int(flag) for flag in shared.tolist()]

    def from_main(self, value: T) -> T:
        """The main process's value, on every process."""
        if self.world_size == 1:
            return value
        box: list[T] = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.world_size > 1:
            dist.barrier(group=self.control)

    def wait(self) -> None:
        """Wait until the device has done all it was asked for: for clocks, never in a step."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def free_memory(self) -> None:
        """Give unused memory of the device back, so that pieces of another size find room."""
        gc.collect()  # what only cycles still hold
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        elif self.device.type == "mps":
            torch.mps.empty_cache()
        else:
            return_freed_memory()

    def forget_peak(self) -> None:
        """Let the device's peak of memory be that from now on."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def available_memory(self) -> int:
        """Bytes of main memory that this machine, or the container it is, has left."""
        free, left = psutil.virtual_memory().available, left_in_container()
        return free if left is None else min(free, left)

    def free_device_memory(self) -> int:
        """Bytes of the GPU's own memory that are free; 0 on a device that shares the main memory."""
        if self.device.type != "cuda":
            return 0
        return int(torch.cuda.mem_get_info(self.device)[0])

    def memory(self) -> Memory:
        """Bytes in use now, and the device's peak."""
        process = psutil.Process().memory_info().rss
        if self.device.type != "cuda":
            return Memory(process)
        return Memory(
            process,
            torch.cuda.memory_allocated(self.device),
            torch.cuda.memory_reserved(self.device),
            torch.cuda.max_memory_allocated(self.device),
            torch.cuda.get_device_properties(self.device).total_memory,
        )

    @property
    def has_bf16_to_offer(self) -> bool:
        """Whether this is a CPU in fp32 that has instructions for bf16."""
        if self.device.type != "cpu" or self.dtype != torch.float32:
            return False
        look = getattr(torch.cpu, "get_capabilities", None)  # torch 2.11 may lack it
        capabilities: Mapping[str, Any] = look() if look else {}
        return any(capabilities.get(name) for name in CPU_BF16)

    def describe(self) -> str:
        """Device, precision and number of processes, for the user."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""
        device = f"{self.device} ({name})" if name else f"{self.device} ({torch.get_num_threads()} threads)"
        precision = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[self.dtype]
        world = f", {self.world_size} processes" if self.world_size > 1 else ""
        return f"{device}, {precision}{world}"


def lost_another(problem: BaseException) -> bool:
    """Whether a collective failed because another process of the run has gone: so say gloo, NCCL and the store."""
    if isinstance(problem, dist.DistError):
        return True
    return isinstance(problem, RuntimeError) and any(word in str(problem) for word in ("gloo", "NCCL", "by peer"))


def _bundles(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in their order, in groups of about BUNDLE_BYTES."""
    bundle: list[Tensor] = []
    for tensor in tensors:
        bundle.append(tensor)
        if sum(member.nbytes for member in bundle) >= BUNDLE_BYTES:
            yield bundle
            bundle = []
    if bundle:
        yield bundle


@contextmanager
def open_runtime(device: str, precision: Precision, deterministic: bool = False) -> Iterator[Runtime]:
    """The runtime of this process; joins the others under `torchrun`, and leaves them at the end.

    Args:
        deterministic: refuse kernels whose bits differ from run to run.

    Raises:
        ConfigError: the device or the precision is not to be had here.
    """
    rank = int(os.environ.get("RANK", 0))
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    chosen = _choose_device(device, local_rank)
    dtype = _choose_dtype(precision, chosen)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        torch.backends.cudnn.benchmark = not deterministic  # the fastest kernel may be another one next time
        torch.backends.cudnn.allow_tf32 = False  # on by itself: 10 bits of mantissa under the name of fp32
    if chosen.type == "cpu":
        keep_freed_memory()
    control: dist.ProcessGroup | None = None
    if world_size > 1:
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
        group = dist.new_group(backend="gloo", timeout=PREPARATION_TIMEOUT)
        control = group if isinstance(group, dist.ProcessGroup) else None
    try:
        with _same_bits() if deterministic else nullcontext():
            yield Runtime(chosen, dtype, rank, world_size, control)
    finally:
        if world_size > 1:
            dist.destroy_process_group()


@contextmanager
def _same_bits() -> Iterator[None]:
    """torch takes deterministic kernels, and raises RuntimeError where it has none."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    filling: Any = torch.utils.deterministic  # its attribute is a property of the module
    before = torch.are_deterministic_algorithms_enabled(), filling.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    filling.fill_uninitialized_memory = False  # nothing here reads what it has not written
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        filling.fill_uninitialized_memory = before[1]


def no_same_bits(problem: BaseException) -> bool:
    """Whether an operation failed because torch has no deterministic kernel for it on this device."""
    return isinstance(problem, RuntimeError) and "deterministic" in str(problem)


def _choose_device(wish: str, local_rank: int) -> torch.device:
    if wish == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", local_rank)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(wish)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        device = torch.device("cuda", local_rank if device.index is None else device.index)
        if (device.index or 0) >= count:
            raise EnvironmentProblem(
                f"--device {wish}: torch sees {count} CUDA device(s) here. Use --device cpu, or mend the driver."
            )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise EnvironmentProblem("--device mps: torch sees no Apple GPU here. Use --device cpu.")
    return device


def _choose_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    if precision == "auto":
        has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bf16 else torch.float32
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("training.precision fp16 needs a GPU. Use bf16, fp32 or auto on the CPU.")
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
