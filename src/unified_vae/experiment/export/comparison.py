"""Exported files against the model they came from: opened in a fresh process, same numbers in, numbers out compared."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from unified_vae.core.durable import STAGE_PREFIX
from unified_vae.core.errors import EnvironmentProblem
from unified_vae.experiment.export.parts import Part

READER = Path(__file__).with_name("reader.py")
Reader = Literal["onnx", "torch", "aoti", "diffusers"]


@dataclass(frozen=True)
class Checked:
    """A file that was written, opened again and compared.

    Attributes:
        file: its name.
        absolute: largest difference from PyTorch, over all batch sizes and outputs.
        relative: largest difference / largest number of that output.
        reader: what opened it.
    """

    file: str
    absolute: float
    relative: float
    reader: str


def compare(
    stage: Path,
    parts: Sequence[Part],
    kind: Reader,
    ending: str,
    allowed: float,
    reader: str,
    batches: Sequence[int] | None = None,
) -> list[Checked]:
    """Open each part's file in a fresh process and compare it with the part, for every size of a batch.

    Args:
        allowed: largest relative difference; 0 asks for equal numbers.
        reader: the library and its version, for the report.
        batches: the sizes; None takes those of each part.

    Raises:
        EnvironmentProblem: a file cannot be opened, or gives other numbers.
    """
    found = _read(stage, parts, kind, batches)
    checked = []
    for part in parts:
        absolute = relative = 0.0
        for batch in batches or part.batches:
            given = [found[f"{part.name}/{batch}/{number}"] for number in range(len(part.gives))]
            for expected, actual in zip(part.results(batch), given, strict=True):
                far, near = difference(expected, torch.from_numpy(actual))
                absolute, relative = max(absolute, far), max(relative, near)
        checked.append(Checked(f"{part.name}{ending}", absolute, relative, reader))
        if not relative <= allowed:
            raise EnvironmentProblem(
                f"{part.name}{ending} was written, but {reader} computes other numbers from it than PyTorch (relative "
                f"difference {relative:.1e}, allowed {allowed:.0e}), so it was deleted. Try another version of either."
            )
    return checked


def difference(expected: Tensor, actual: Tensor) -> tuple[float, float]:
    """Largest absolute difference, and the same / largest expected number; infinite where shapes or NaNs differ."""
    if expected.shape != actual.shape or not bool(torch.isfinite(actual).all()):
        return float("inf"), float("inf")
    far = float((expected.double() - actual.double()).abs().max())
    return far, far / max(float(expected.abs().max()), 1e-12)


def _read(stage: Path, parts: Sequence[Part], kind: Reader, batches: Sequence[int] | None) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory(prefix=f"{STAGE_PREFIX}compare-", dir=stage.parent) as folder:
        inputs, results = Path(folder, "inputs.npz"), Path(folder, "results.npz")
        given: dict[str, Any] = {
            f"{part.name}/{size}": part.example(size).numpy() for part in parts for size in batches or part.batches
        }
        np.savez(inputs, **given)
        threads = torch.get_num_threads()  # as many as here: sums of other parts would round differently
        words = [kind, str(stage), str(inputs), str(results), str(threads)]
        command = [sys.executable, "-P", str(READER), *words]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise EnvironmentProblem(f"the files were written, but a fresh process could not use them ({last}).")
        with np.load(results) as arrays:
            return dict(arrays)
