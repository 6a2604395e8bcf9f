"""torch.compile for what a step computes of tensors alone. Importing this does not load the compiler."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

from unified_vae.core.durable import reason
from unified_vae.core.errors import EnvironmentProblem
from unified_vae.core.out_of_memory import is_out_of_memory

Given = ParamSpec("Given")
Result = TypeVar("Result")

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
ITS_PACKAGES = ("torch._dynamo", "torch._inductor", "torch._functorch", "triton")
CALLS_BACKENDS = "torch._dynamo.backends.common"
"""The module that asks for kernels, and is not there any more when they run."""


def keep_compiled_in(folder: Path) -> None:
    """Let compiled kernels outlast the machine's restart, which clears the temporary folder that torch takes."""
    os.environ.setdefault(CACHE_VARIABLE, str(folder))


def with_the_compiler(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """`function` compiled at its first call, and again for each other shape of what it is given.

    That ends at 8 versions of a function in a process (`torch._dynamo.config.recompile_limit`): further shapes are then
    computed uncompiled, and torch warns of it. A run has a few shapes: its batch, and pieces where memory ran out.

    Raises:
        EnvironmentProblem: (when called) the compiler cannot be used here; the sentence names the setting.
    """
    compiled = torch.compile(function, dynamic=False)

    def call(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        with its_failures_told():
            return compiled(*args, **kwargs)

    return call


@contextmanager
def its_failures_told() -> Iterator[None]:
    """Around the call of what is compiled, and around `backward`, which is compiled when it is first asked for.

    Raises:
        EnvironmentProblem: the compiler cannot be used here; the sentence names the setting.
    """
    try:
        yield
    except Exception as problem:
        if not _is_of_the_compiler(problem) or is_out_of_memory(problem):
            raise
        raise EnvironmentProblem(
            f"torch.compile does not work here ({reason(problem)}). Train without it: --set training.compile=false"
        ) from problem


def _is_of_the_compiler(problem: Exception) -> bool:
    """Whether the compiler failed, rather than what it compiled. What fails at a backward pass torch does not wrap."""
    of_its_kind = any(kind.__module__.startswith(ITS_PACKAGES) for kind in type(problem).__mro__)
    frames = traceback.walk_tb(problem.__traceback__)
    return of_its_kind or any(frame.f_globals.get("__name__") == CALLS_BACKENDS for frame, _ in frames)
