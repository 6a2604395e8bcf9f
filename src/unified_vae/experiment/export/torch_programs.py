"""Encoder and decoder as PyTorch's own graphs: `torch.export` programs, and the same compiled ahead of time."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from unified_vae.core.durable import reason
from unified_vae.core.errors import EnvironmentProblem
from unified_vae.core.events import Observer
from unified_vae.experiment.export.comparison import Checked, compare
from unified_vae.experiment.export.parts import Part

ENDING = ".pt2"
ALLOWED_COMPILED = 1e-4  # relative: the compiler orders sums anew
ALLOWED_COMPILED_HALF = 3e-2


def write(stage: Path, parts: Sequence[Part], observer: Observer) -> list[Checked]:
    """Write `encoder.pt2` and `decoder.pt2`, and see that a process with torch alone gets equal numbers from them.

    Raises:
        EnvironmentProblem: it does not.
    """
    for number, part in enumerate(parts):
        observer.phase("tracing", number, len(parts))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.export.save(part.traced(), stage / f"{part.name}{ENDING}")
    observer.phase("opening them with torch alone, in a fresh process", 0, None)
    return compare(stage, parts, "torch", ENDING, 0.0, f"torch {torch.__version__}")


def write_compiled(stage: Path, parts: Sequence[Part], half: bool, observer: Observer) -> list[Checked]:
    """Write packages of AOTInductor, which hold machine code for this kind of machine.

    Raises:
        EnvironmentProblem: the compiler fails, or its code computes other numbers.
    """
    for number, part in enumerate(parts):
        observer.phase("compiling, which takes minutes", number, len(parts))
        begun = time.monotonic()
        _compile(part, stage / f"{part.name}{ENDING}")
        observer.notice(f"{part.name} compiled in {time.monotonic() - begun:.0f} s")
    observer.phase("opening them with torch alone, in a fresh process", 0, None)
    allowed = ALLOWED_COMPILED_HALF if half else ALLOWED_COMPILED
    return compare(stage, parts, "aoti", ENDING, allowed, f"torch {torch.__version__}")


def _compile(part: Part, path: Path) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch._inductor.aoti_compile_and_package(part.traced(), package_path=str(path))
    except Exception as problem:  # the compiler's errors are of many kinds
        raise EnvironmentProblem(
            f"the C++ compiler could not build the {part.name} ({reason(problem)}). Use --to torch, which needs none."
        ) from problem
