"""Running out of memory, met with smaller micro-batches of the same batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from unified_vae.core.durable import reason
from unified_vae.core.errors import EnvironmentProblem
from unified_vae.core.out_of_memory import is_out_of_memory
from unified_vae.training.runtime import Runtime

T = TypeVar("T")


def attempted(work: Callable[[], T], runtime: Runtime, why: Callable[[str], None] | None = None) -> T | None:
    """What `work` returns; None where memory did not suffice, and then what it held is free again.

    Args:
        why: told the first line of the error.
    """
    try:
        return work()
    except (RuntimeError, MemoryError) as problem:
        if not is_out_of_memory(problem):
            raise
        if why:
            why(reason(problem))
    runtime.free_memory()  # outside of the clause above, where the traceback still holds the tensors
    return None


class MicroBatches:
    """In how many pieces each device takes its share of a batch: more where memory does not suffice, for good.

    Attributes:
        pieces: micro-batches of a share.
    """

    def __init__(self, runtime: Runtime, pieces: int) -> None:
        self.runtime = runtime
        self.pieces = pieces
        self._problem = ""

    def fit(self, share: int, work: Callable[[int], T]) -> T:
        """The result of `work(pieces)`, tried with twice as many pieces until memory suffices on all processes.

        Args:
            share: images of one device, the most pieces there can be.
            work: may be cut short and called again; it must not talk to other processes.

        Raises:
            EnvironmentProblem: one image at a time is still too much.
        """
        while True:
            pieces = min(self.pieces, share)
            result = attempted(lambda: work(pieces), self.runtime, self._note)  # noqa: B023  # called at once
            (ran_out,) = self.runtime.agree([int(result is None)])
            if not ran_out:
                assert result is not None
                return result
            self._halve(share)

    def _note(self, problem: str) -> None:
        self._problem = f" ({problem})"

    def _halve(self, share: int) -> None:
        if self.pieces >= share:
            raise EnvironmentProblem(
                f"the device ran out of memory with one image at a time{self._problem}. Take a smaller model (a model "
                "preset, or --set model.base_channels), smaller images, --precision bf16, or close what else uses the "
                "device. What was saved before is kept."
            )
        self.pieces = min(2 * self.pieces, share)
