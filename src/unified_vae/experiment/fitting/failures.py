"""What torch raises on the way of a run and its user can mend, as a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from unified_vae.core.durable import reason
from unified_vae.core.errors import EnvironmentProblem
from unified_vae.core.out_of_memory import is_out_of_memory
from unified_vae.training.runtime import lost_another, no_same_bits


@contextmanager
def failures_told() -> Iterator[None]:
    """Around all that a run does.

    Raises:
        EnvironmentProblem: a process was lost, a kernel does not exist, or memory ran out where no smaller pieces help.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as problem:
        if lost_another(problem):
            raise EnvironmentProblem(
                "another process of this run has ended, or cannot be reached any more. See what it said; then run the "
                "same command, which goes on from the newest checkpoint."
            ) from problem
        if no_same_bits(problem):
            raise EnvironmentProblem(
                f"training.deterministic: this device has no deterministic kernel for a part of this run "
                f"({reason(problem)}). Leave the setting out, or train on the CPU."
            ) from problem
        if not is_out_of_memory(problem):
            raise
        raise EnvironmentProblem(
            f"memory ran out outside of a training step ({reason(problem)}). Take a smaller model or smaller images, "
            "or close what else uses the memory. What was saved before is kept."
        ) from problem
