"""The machine's measured best at what networks mostly do: multiplying matrices."""

from __future__ import annotations

import time

import torch

from unified_vae.training.runtime import Runtime

SIDE = {"cuda": 8192, "cpu": 1536}
USUAL_SIDE = 4096
SECONDS = 1.0
FEWEST = 3


def peak_flops(runtime: Runtime) -> float:
    """Operations a second of the fastest of some products of square matrices, in the network's precision."""
    side = SIDE.get(runtime.device.type, USUAL_SIDE)
    left, right = (torch.ones(side, side, device=runtime.device, dtype=runtime.dtype) for _ in range(2))
    torch.mm(left, right)
    runtime.wait()
    best, begun, count = float("inf"), time.perf_counter(), 0
    while count < FEWEST or time.perf_counter() - begun < SECONDS:
        started = time.perf_counter()
        torch.mm(left, right)
        runtime.wait()
        best, count = min(best, time.perf_counter() - started), count + 1
    return 2 * side**3 / best
