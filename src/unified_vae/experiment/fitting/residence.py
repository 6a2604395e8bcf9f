"""Where the training images lie while a run trains: in the GPU's memory, in main memory, or on the disk."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from unified_vae.config.data import DataConfig
from unified_vae.core.errors import EnvironmentProblem
from unified_vae.core.out_of_memory import is_out_of_memory
from unified_vae.data.batches import cache_on_device, fits_on_device
from unified_vae.data.dataset import PackedSplit
from unified_vae.training.runtime import Runtime

GIB = 2**30


def place(split: PackedSplit, config: DataConfig, runtime: Runtime) -> tuple[Tensor | None, str]:
    """The images on the device, or None where they are read from the pack; and what to say of it.

    Raises:
        EnvironmentProblem: they were to be resident, and the device has no room.
    """
    size = int(np.prod(split.shape)) / GIB
    asked = config.cache_on_device is True
    if asked or (config.cache_on_device == "auto" and runtime.device.type == "cuda" and _room(split, runtime)):
        try:
            return cache_on_device(split, runtime.device), f"all {size:.2g} GiB in the memory of {runtime.device}"
        except (RuntimeError, MemoryError) as problem:
            if not is_out_of_memory(problem):
                raise
            if asked:
                raise EnvironmentProblem(
                    f"the training images take {size:.2g} GiB, and {runtime.device} has no room for them: "
                    "leave data.cache_on_device out."
                ) from problem
        runtime.free_memory()  # outside of the clause above, where the traceback still holds them
    free = runtime.available_memory() / GIB
    if size < free / 2:
        return None, f"{size:.2g} GiB mapped from the disk, which stay in main memory once they were read"
    return None, f"{size:.2g} GiB mapped from the disk, more than half of the free {free:.2g} GiB of main memory"


def _room(split: PackedSplit, runtime: Runtime) -> bool:
    return fits_on_device(split, runtime.free_device_memory())
