"""torch.compile for what a step computes of tensors alone. Importing this does not load the compiler."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

from unified_vae.core.durable import reason
from unified_vae.core.errors import EnvironmentProblem

Given = ParamSpec("Given")
Result = TypeVar("Result")

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def keep_compiled_in(folder: Path) -> None:
    """Let compiled kernels outlast the machine's restart, which clears the temporary folder that torch takes."""
    os.environ.setdefault(CACHE_VARIABLE, str(folder))


def with_the_compiler(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """`function` compiled at its first call, once for each shape.

    Raises:
        EnvironmentProblem: (when called) the compiler cannot be used here; the sentence names the setting.
    """
    compiled = torch.compile(function, dynamic=False)

    def call(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        try:
            return compiled(*args, **kwargs)
        except Exception as problem:
            if not _is_of_the_compiler(problem):
                raise
            raise EnvironmentProblem(
                f"torch.compile does not work here ({reason(problem)}). Train without it: --set training.compile=false"
            ) from problem

    return call


def _is_of_the_compiler(problem: Exception) -> bool:
    """Whether the compiler failed, rather than what it compiled."""
    return any(kind.__module__.startswith(("torch._dynamo", "torch._inductor")) for kind in type(problem).__mro__)
