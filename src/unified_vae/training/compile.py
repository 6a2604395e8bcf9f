"""torch.compile for what a step computes of tensors alone. Importing this does not load the compiler."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch

from unified_vae.core.device import is_out_of_memory
from unified_vae.core.errors import EnvironmentProblem, reason

P = ParamSpec("P")
R = TypeVar("R")

COMPILER_PACKAGES = ("torch._dynamo", "torch._inductor", "torch._functorch", "triton")
BACKENDS_MODULE = "torch._dynamo.backends.common"
"""The module that asks for kernels, and is not on the stack any more when they run."""


def compile_fn(function: Callable[P, R]) -> Callable[P, R]:
    """Compile `function` at its first call, and again for each other shape of its arguments.

    That ends at 8 versions of a function in a process (`torch._dynamo.config.recompile_limit`): further shapes are then
    computed uncompiled, and torch warns of it. A run has a few shapes: its batch, and micro-batches after
    out-of-memory.

    Raises:
        EnvironmentProblem: (when called) the compiler cannot be used here; the sentence names the setting.
    """
    compiled = torch.compile(function, dynamic=False)

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with translate_compile_errors():
            return compiled(*args, **kwargs)

    return call


@contextmanager
def translate_compile_errors() -> Iterator[None]:
    """Used around the call of what is compiled, and around `backward`, which is compiled when it is first needed.

    Raises:
        EnvironmentProblem: the compiler cannot be used here; the sentence names the setting.
    """
    try:
        yield
    except Exception as error:
        # the compiler failed, rather than what it compiled; torch does not wrap what fails in a backward pass
        is_compiler_error = any(kind.__module__.startswith(COMPILER_PACKAGES) for kind in type(error).__mro__)
        frames = traceback.walk_tb(error.__traceback__)
        in_backend = any(frame.f_globals.get("__name__") == BACKENDS_MODULE for frame, _ in frames)
        if not (is_compiler_error or in_backend) or is_out_of_memory(error):
            raise
        raise EnvironmentProblem(
            f"torch.compile does not work here ({reason(error)}). Train without it: --set training.compile=false"
        ) from error
