"""Devices and precision: where tensors are computed, in which dtype and memory format."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Self

import psutil
import torch
from torch import Tensor

from unified_vae.core import __version__
from unified_vae.core.errors import ConfigError, EnvironmentProblem
from unified_vae.core.events import Memory

MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CPU_BF16 = ("avx512_bf16", "amx_bf16")  # of torch.cpu.get_capabilities; other CPUs were not measured


@dataclass(frozen=True)
class ComputeDevice:
    """A device and how a network is computed on it.

    Attributes:
        device: of the tensors.
        dtype: of the network under autocast; float32 means no autocast.
        memory_format: of the network's images and weights.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.contiguous_format

    def with_memory_format(self, name: str) -> Self:
        """Return the same with the memory format that `training.memory_format` names."""
        return replace(self, memory_format=MEMORY_FORMATS[name])

    @property
    def accumulation_dtype(self) -> torch.dtype:
        """float64, but float32 on MPS, which lacks it."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    @property
    def is_async(self) -> bool:
        """Whether the host has to wait for the device to read a number from it."""
        return self.device.type != "cpu"

    @property
    def fused(self) -> bool:
        """Whether fused optimizers, which can skip an update on the device, are used."""
        return self.device.type in ("cpu", "cuda")

    @property
    def supports_bf16(self) -> bool:
        """Whether this is a CPU in fp32 that has instructions for bf16."""
        if self.device.type != "cpu" or self.dtype != torch.float32:
            return False
        read = getattr(torch.cpu, "get_capabilities", None)  # torch 2.11 may lack it
        capabilities: dict[str, Any] = dict(read()) if read else {}
        return any(capabilities.get(name) for name in CPU_BF16)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of the network's arithmetic."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, self.dtype)

    def to_device(self, values: Tensor) -> Tensor:
        """Copy from host memory to this device; on CUDA without waiting."""
        return to_device(values, self.device)

    def synchronize(self) -> None:
        """Wait until the device has done all it was asked for: for clocks, never in a step."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def empty_cache(self) -> None:
        """Give unused memory of the device back, so that tensors of another size find room."""
        gc.collect()  # what only cycles still hold
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        elif self.device.type == "mps":
            torch.mps.empty_cache()
        elif sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
            library.malloc_trim(0)  # glibc keeps what is freed, see cli.app.keep_freed_memory

    def reset_peak_memory(self) -> None:
        """Count the device's peak memory from now on."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def free_device_memory(self) -> int:
        """Return the free bytes of the GPU's own memory; 0 on a device that shares the main memory."""
        return int(torch.cuda.mem_get_info(self.device)[0]) if self.device.type == "cuda" else 0

    def memory(self) -> Memory:
        """Return the bytes in use now, and the device's peak."""
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

    def describe(self) -> str:
        """Describe device and precision for the user."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""
        details = name or f"{torch.get_num_threads()} threads"
        return f"{self.device} ({details}), {next(key for key, value in DTYPES.items() if value == self.dtype)}"


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy host memory to a device; on CUDA without waiting.

    CUDA reads pageable memory before the call returns, and PyTorch keeps pinned memory until its copy is done. MPS does
    neither: what is freed before the copy has run arrives as other bytes (pytorch issues 139550, 189690).
    """
    return values.to(device, non_blocking=device.type == "cuda")


def choose_device(name: str | torch.device, local_rank: int = 0) -> torch.device:
    """Return the device that a user names: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.

    Args:
        local_rank: of this process on its machine, for `auto` and `cuda`.

    Raises:
        ConfigError: there is no such kind of device.
        EnvironmentProblem: this machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", local_rank)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"unknown device {str(name)!r}: use auto, cpu, cuda, cuda:N or mps.") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        device = torch.device("cuda", local_rank if device.index is None else device.index)
        if (device.index or 0) >= count:
            raise EnvironmentProblem(
                f"device {name}: torch sees {count} CUDA device(s) here. Use --device cpu, or fix the driver."
            )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise EnvironmentProblem("device mps: torch sees no Apple GPU here. Use --device cpu.")
    return device


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of `training.precision`; `auto` is bf16 on a CUDA device that has it, else fp32.

    Raises:
        ConfigError: the device cannot compute in it.
    """
    if precision == "auto":
        has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bf16 else torch.float32
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("training.precision fp16 needs a GPU. Use bf16, fp32 or auto on the CPU.")
    return DTYPES[precision]


def environment() -> dict[str, str]:
    """Return versions of what decides the numbers, and the machine: recorded with a run."""
    facts = {
        "unified-vae": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
    }
    if torch.cuda.is_available():
        facts["cuda"] = str(torch.version.cuda)
        facts["gpu"] = torch.cuda.get_device_name()
    if sys.platform == "darwin":
        facts["macos"] = platform.mac_ver()[0]
    return facts


@contextmanager
def open_device(name: str | torch.device, precision: str = "fp32") -> Iterator[ComputeDevice]:
    """Open a device for one process, with the flags of `torch_flags`.

    Args:
        name: as for `choose_device`.
        precision: fp32, bf16, fp16 or auto.

    Raises:
        ConfigError, EnvironmentProblem: there is no such device or precision here.
    """
    device = choose_device(name)
    compute = ComputeDevice(device, choose_dtype(precision, device))
    with torch_flags(device):
        yield compute


@contextmanager
def without_tf32() -> Iterator[None]:
    """Keep cuDNN from computing convolutions of float32 with 10 bits of mantissa, its default on recent GPUs."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@contextmanager
def torch_flags(device: torch.device, deterministic: bool = False) -> Iterator[None]:
    """Set the flags of torch that training and measuring need, and put back what they were.

    Args:
        deterministic: refuse kernels whose bits differ from run to run.
    """
    cudnn, filling = torch.backends.cudnn, getattr(torch.utils, "deterministic")  # noqa: B009  # a property of the module
    before = (cudnn.benchmark, cudnn.allow_tf32)
    mode, filled = torch.get_deterministic_debug_mode(), filling.fill_uninitialized_memory
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    current = torch.cuda.current_device() if device.type == "cuda" else None
    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)
            cudnn.benchmark = not deterministic  # the fastest kernel may be another one next time
            cudnn.allow_tf32 = False  # on by default: 10 bits of mantissa under the name of fp32
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
            torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms would import the compiler
            filling.fill_uninitialized_memory = False  # nothing here reads what it has not written
        yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32 = before
        torch.set_deterministic_debug_mode(mode)
        filling.fill_uninitialized_memory = filled
        if current is not None:
            torch.cuda.set_device(current)
        if deterministic and workspace is None:
            os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Switch autocast off, for exact sums; `meta`, the device on which models are counted, has none."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


OUT_OF_MEMORY = (  # what an error says that torch raises as a plain RuntimeError where an allocation failed
    "out of memory",  # CUDA, MPS, HIP
    "can't allocate memory",  # the CPU's allocator
    "ALLOC_FAILED",  # cuBLAS, cuDNN
    "could not create a primitive",  # oneDNN, whatever it lacked; on a CPU that is memory
)


def is_out_of_memory(problem: BaseException) -> bool:
    """Return whether an error of Python, torch or a library below it means that an allocation failed."""
    if isinstance(problem, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(problem, RuntimeError) and any(words in str(problem) for words in OUT_OF_MEMORY)
