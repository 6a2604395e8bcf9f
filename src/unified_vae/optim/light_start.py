"""Using a torch optimizer without loading the compiler, which would double a run's start-up.

Several methods of `torch.optim.Optimizer` are marked or wrapped for torch.compile, and import all of it
(sympy, inductor) when first called: 4 s on a laptop core, 19 s where Python may not keep bytecode. Nothing
here is ever compiled, so the marks are filled in with the plain methods, and `step` is called without its wrapper.
"""

from __future__ import annotations

import inspect

import torch
from torch.optim import Optimizer

_MARK = "__dynamo_disable"  # where torch._compile._disable_dynamo keeps the marked function


def leave_the_compiler_alone() -> None:
    """Let the marked methods call themselves directly.

    A torch version that keeps its marks elsewhere is not affected: it starts more slowly, and works.
    """
    for method in (Optimizer.add_param_group, Optimizer.state_dict, Optimizer.load_state_dict, Optimizer.zero_grad):
        plain = getattr(method, "__wrapped__", None)
        if plain is not None and not hasattr(plain, _MARK):
            setattr(plain, _MARK, plain)


def take_step(optimizer: Optimizer) -> None:
    """`optimizer.step()` without the wrappers for torch.compile, the profiler and hooks, none of which is used here."""
    with torch.no_grad():
        inspect.unwrap(type(optimizer).step)(optimizer)
