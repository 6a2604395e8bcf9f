"""Running out of memory, recognised wherever it comes from."""

from __future__ import annotations

import torch

WORDS = (
    "out of memory",  # CUDA, MPS, HIP
    "can't allocate memory",  # the CPU's allocator
    "ALLOC_FAILED",  # cuBLAS, cuDNN
    "could not create a primitive",  # oneDNN, whatever it lacked; on a CPU that is memory
)
"""What an error says that torch raises as a plain RuntimeError where an allocation failed."""


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether an error means that memory does not suffice."""
    if isinstance(problem, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(problem, RuntimeError) and any(words in str(problem) for words in WORDS)
