"""Out-of-memory: retry with smaller micro-batches of the same batch; memory left on a machine or in a container."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil

from unified_vae.core.device import is_out_of_memory
from unified_vae.core.errors import EnvironmentProblem, reason
from unified_vae.training.distributed import Runtime

T = TypeVar("T")

CGROUP_ROOT = Path("/sys/fs/cgroup")
CGROUP_FILES = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)
"""Limit, use, statistics, and the name among these of reclaimable file pages, in version 2 and 1."""


def try_or_none_on_oom(
    work: Callable[[], T], runtime: Runtime, on_error: Callable[[str], None] | None = None
) -> T | None:
    """Return what `work` returns; None on out-of-memory, and then what it held is free again.

    Args:
        on_error: receives the first line of the error.
    """
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if on_error:
            on_error(reason(error))
    runtime.empty_cache()  # outside of the clause above, where the traceback still holds the tensors
    return None


class MicroBatches:
    """How many micro-batches each rank splits its local batch into: more after out-of-memory, for good.

    Attributes:
        count: micro-batches per local batch.
    """

    def __init__(self, runtime: Runtime, count: int = 1) -> None:
        self.runtime = runtime
        self.count = count

    def run_with_oom_retry(self, local_batch: int, work: Callable[[int], T]) -> T:
        """Return `work(count)`, retried with twice as many micro-batches until memory suffices on all ranks.

        Args:
            local_batch: images on this rank, the most micro-batches there can be.
            work: may be cut short and called again; it must not talk to other ranks.

        Raises:
            EnvironmentProblem: one image at a time is still too much.
        """
        errors: list[str] = []
        while True:
            count = min(self.count, local_batch)
            result = try_or_none_on_oom(lambda: work(count), self.runtime, errors.append)  # noqa: B023  # called at once
            (ran_out,) = self.runtime.all_reduce_max([int(result is None)])
            if not ran_out:
                assert result is not None
                return result
            if self.count >= local_batch:
                details = f" ({errors[-1]})" if errors else ""
                raise EnvironmentProblem(
                    f"out of memory with one image at a time{details}. Use a smaller model (a model preset, or "
                    "--set model.base_channels), smaller images, --precision bf16, or close what else uses the device. "
                    "Saved checkpoints are kept."
                )
            self.count = min(2 * self.count, local_batch)


def available_memory() -> int:
    """Bytes of main memory that this machine, or the container it is, has left."""
    free, left = psutil.virtual_memory().available, memory_left_in_container()
    return free if left is None else min(free, left)


def memory_left_in_container(root: Path = CGROUP_ROOT) -> int | None:
    """Bytes below the memory limit of a Linux container; None where there is no limit. psutil knows the machine only.

    Pages of files that were read or written and not used since are reclaimed as soon as memory is needed, so they count
    as free, as in Kubernetes' "working set". Otherwise a container that has just packed its images would seem full.
    """
    for limit, used, statistics, reclaimable in CGROUP_FILES:
        try:
            most, now = int((root / limit).read_text()), int((root / used).read_text())
        except (OSError, ValueError):  # absent, or "max"
            continue
        try:
            rows = dict(line.split() for line in (root / statistics).read_text().splitlines())
            cached = int(rows.get(reclaimable, 0))
        except (OSError, ValueError):
            cached = 0
        return max(most - now + cached, 0)
    return None
