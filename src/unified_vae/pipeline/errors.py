"""Errors of torch that the user of a run can do something about, as sentences."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from unified_vae.core.device import is_out_of_memory
from unified_vae.core.errors import EnvironmentProblem, reason
from unified_vae.training.distributed import is_peer_lost


@contextmanager
def translate_runtime_errors() -> Iterator[None]:
    """Used around all that a run does.

    Raises:
        EnvironmentProblem: a rank was lost, a kernel does not exist, or out of memory where no micro-batches help.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_peer_lost(error):
            message = (
                "another process of this run has ended or cannot be reached. See its output; then run the same command "
                "to resume from the newest checkpoint."
            )
        elif isinstance(error, RuntimeError) and "deterministic" in str(error):
            message = (
                f"training.deterministic: this device has no deterministic kernel for a part of this run "
                f"({reason(error)}). Leave the setting out, or train on the CPU."
            )
        elif is_out_of_memory(error):
            message = (
                f"out of memory outside of a training step ({reason(error)}). Use a smaller model or smaller images, "
                "or close what else uses the memory. Saved checkpoints are kept."
            )
        else:
            raise
        raise EnvironmentProblem(message) from error
