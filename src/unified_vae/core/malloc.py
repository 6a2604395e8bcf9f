"""Memory that the C library keeps for the next step, where it computes on the CPU.

glibc gives large blocks back to the system as soon as they are freed: those of 32 MiB and more at once, the others
where the end of the heap is free for twice that. A training step allocates and frees the same activations over and
over, so the system takes each page away and hands it out again, cleared: a fifth of a step of a network whose maps
take 32 MiB (docs/performance.md). The process then holds its peak until it ends, or until `return_freed_memory`.

Bits do not change. Other C libraries have other rules, and are left alone; so is a process whose user has set glibc's
own variables.
"""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # numbers of mallopt(3)
_NEVER = -1
_LARGEST_BLOCKS = (2**30, 32 * 2**20)  # kept when freed; glibc before 2.35 refuses more than the second
USERS_WORD = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")
"""Variables by which a user settles it, see mallopt(3); and so does a tunable whose name begins as below."""
TUNABLES, OF_MALLOC = "GLIBC_TUNABLES", "glibc.malloc."


def keep_freed_memory() -> bool:
    """Let freed memory stay with this process until `return_freed_memory`.

    Returns:
        Whether the C library was told so: False where it is not glibc, or the user has settled it.
    """
    library = _glibc()
    settled = any(os.environ.get(name) for name in USERS_WORD) or OF_MALLOC in os.environ.get(TUNABLES, "")
    if library is None or settled:
        return False
    for size in _LARGEST_BLOCKS:
        if library.mallopt(_MMAP_THRESHOLD, size):
            break
    return bool(library.mallopt(_TRIM_THRESHOLD, _NEVER))


def return_freed_memory() -> None:
    """Give the system what is kept and not in use."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)  # what this process is linked to
    return library if hasattr(library, "gnu_get_libc_version") else None
