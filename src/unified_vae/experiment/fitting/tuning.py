"""What `auto` means for the order of numbers in memory and for torch.compile: measured where a GPU has long to run.

Both change results by rounding. So the answer is found when a run begins, written into its record, and kept when it is
continued. A CPU goes by a table: two starts of the same run give the same bits there, which a race between steps on a
busy machine would break (docs/performance.md has the figures).
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from unified_vae.config.run import RunConfig
from unified_vae.config.training import TrainingConfig
from unified_vae.core.errors import EnvironmentProblem
from unified_vae.data.batches import gather, steps_per_epoch
from unified_vae.data.cache import cache_root
from unified_vae.data.dataset import DataSets
from unified_vae.experiment.fitting.assemble import Parts, Resolved, build_parts, calibrate
from unified_vae.training.compiler import keep_compiled_in
from unified_vae.training.memory import attempted
from unified_vae.training.observers import Observer
from unified_vae.training.runtime import Runtime
from unified_vae.training.step import in_unit_range

WARM_UP_STEPS, TIMED_STEPS = 3, 5
LONG_STEPS = 1000
"""Steps from which on a trial of both formats, some 16 steps, costs less than the smallest gain that counts."""
LONG_SECONDS = 20 * 60.0
"""A run from which on the minute that compiling takes is risked to find out whether it helps."""
GAIN = 0.97
"""Part of the time that the other way has to take at most: less is noise."""

BEFORE: dict[str, object] = {"memory_format": "contiguous", "compile": False}
"""How the runs were computed whose records hold `auto`: there was no choice then."""

Trial = Callable[[str, bool], float | None]
"""(memory format, compiled) -> seconds of a step; None where memory does not suffice."""

Pace = float | str
"""Seconds of a step, or why they are not known."""

NOT_TIMED = "nothing is timed"
NO_ROOM = "memory does not suffice for a trial"


@dataclass(frozen=True)
class Choice:
    """How the network is computed, and why."""

    memory_format: str
    compile: bool
    format_reason: str
    compile_reason: str


def tuned(
    resolved: Resolved, data: DataSets, runtime: Runtime, recorded: TrainingConfig | None, observer: Observer
) -> Resolved:
    """The settings with an answer for each `auto`.

    Args:
        recorded: on resume, what the run took when it began.
    """
    keep_compiled_in(cache_root(resolved.config.data.cache_dir) / "compiled")
    kept = _kept(resolved.config.training, recorded)
    config = resolved.config.replace(**{f"training.{name}": value for name, value in kept.items()})
    asked = config.training

    def measured(memory_format: str, compiled: bool) -> float | None:
        observer.phase(f"timing a step, {memory_format}{', compiled' if compiled else ''}", 0, None)
        return _seconds(config, data, runtime, memory_format, compiled)

    steps = _steps(config, data)
    found = runtime.from_main(choose(asked, runtime, steps, measured) if runtime.is_main else None)
    assert found is not None
    reasons = {"training.memory_format": found.format_reason, "training.compile": found.compile_reason}
    reasons |= {f"training.{name}": "auto: as when this run began" for name in kept}
    tuned_config = config.replace(**{"training.memory_format": found.memory_format, "training.compile": found.compile})
    return Resolved(tuned_config, resolved.substitutions, {**resolved.reasons, **reasons})


def _kept(asked: TrainingConfig, recorded: TrainingConfig | None) -> dict[str, object]:
    """What `auto` was found to be when the run began, or stood for when records did not say so yet."""
    if recorded is None:
        return {}
    found = {name: getattr(recorded, name) for name in BEFORE}
    return {
        name: BEFORE[name] if value == "auto" else value
        for name, value in found.items()
        if getattr(asked, name) == "auto" and not (name == "compile" and asked.deterministic)
    }


def _steps(config: RunConfig, data: DataSets) -> int:
    training = config.training
    whole = training.epochs * steps_per_epoch(len(data.train), training.images_a_step)
    return min(whole, training.max_steps or whole)


def choose(asked: TrainingConfig, runtime: Runtime, steps: int, seconds: Trial) -> Choice:
    """The main process's choice.

    Args:
        steps: of the whole run.
        seconds: asked only where a measurement can repay itself.
    """
    memory_format, format_reason, pace = _format(asked, runtime, steps, seconds)
    if asked.compile != "auto":
        return Choice(memory_format, asked.compile, format_reason, "as asked")
    compiled, compile_reason = _compile(steps, pace, lambda: seconds(memory_format, True))
    return Choice(memory_format, compiled, format_reason, compile_reason)


def _format(asked: TrainingConfig, runtime: Runtime, steps: int, seconds: Trial) -> tuple[str, str, Pace]:
    """The format, why, and the seconds of a step: uncompiled, unless compiling is asked for anyway."""
    unmeasured, compiled = _unmeasured(asked, runtime, steps), asked.compile is True
    if asked.memory_format != "auto":
        needed = not unmeasured and asked.compile == "auto"
        took = seconds(asked.memory_format, compiled) if needed else None
        return asked.memory_format, "as asked", took or unmeasured or NO_ROOM
    usual = _usual(runtime)
    known = f"auto: usual for {_word(runtime.dtype)} on {runtime.device.type}"
    if unmeasured:
        return usual, f"{known}; {unmeasured}", unmeasured
    found = {name: seconds(name, compiled) for name in ("contiguous", "channels_last")}
    other = "contiguous" if usual == "channels_last" else "channels_last"
    mine, theirs = found[usual], found[other]
    if mine is None or theirs is None:
        return usual, f"{known}; {NO_ROOM}", mine or NO_ROOM
    taken = other if theirs < GAIN * mine else usual
    told = ", ".join(f"{1e3 * took:.1f} ms a step {name}" for name, took in found.items() if took is not None)
    return taken, f"auto: measured {told}{', compiled' if compiled else ''}", theirs if taken == other else mine


def _unmeasured(asked: TrainingConfig, runtime: Runtime, steps: int) -> str:
    """Why nothing is measured; empty where it is."""
    if runtime.device.type != "cuda":
        return f"{NOT_TIMED} on {runtime.device.type} (docs/performance.md)"
    if asked.deterministic:
        return "training.deterministic takes no kernels by their timing"
    return f"{steps:,} steps do not repay a trial" if steps < LONG_STEPS else ""


def _compile(steps: int, pace: Pace, compiled_seconds: Callable[[], float | None]) -> tuple[bool, str]:
    if isinstance(pace, str):
        return False, f"auto: off; {pace}"
    if steps * pace < LONG_SECONDS:
        return False, f"auto: a run of about {max(steps * pace / 60, 1):.0f} min is too short to repay compiling"
    try:
        took = compiled_seconds()
    except EnvironmentProblem as problem:
        return False, f"auto: {problem}"
    if took is None:
        return False, f"auto: off; {NO_ROOM}"
    return took < GAIN * pace, f"auto: measured {1e3 * took:.1f} ms a step compiled, {1e3 * pace:.1f} ms without"


def _usual(runtime: Runtime) -> str:
    """Tensor cores take numbers of 16 bits channels last; everything else is faster, or as fast, contiguous."""
    half = runtime.dtype in (torch.bfloat16, torch.float16)
    return "channels_last" if runtime.device.type == "cuda" and half else "contiguous"


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _seconds(config: RunConfig, data: DataSets, runtime: Runtime, memory_format: str, compiled: bool) -> float | None:
    """Median seconds of a step of this process's share of a batch, on weights of its own."""
    alone = runtime.laid_out(memory_format).alone()
    share = config.training.images_a_step // runtime.world_size
    trial = config.replace(**{"training.batch_size": share, "training.compile": compiled})
    found = attempted(lambda: _timed(build_parts(trial, data, alone), data, alone), runtime)
    runtime.free_memory()
    runtime.forget_peak()
    return found if found is not None and math.isfinite(found) else None


def _timed(parts: Parts, data: DataSets, runtime: Runtime) -> float:
    images = gather(data.train, np.arange(parts.plan.batch_size) % len(data.train)).to(runtime.device)
    noise = torch.zeros(1, parts.model.latents, device=runtime.device)
    calibrate(parts, in_unit_range(images[:1], runtime.layout), noise, runtime)
    for step in range(WARM_UP_STEPS):
        parts.stepper.take(images, step, 0.5, 0.0)
    clock = [_now(runtime)]
    for step in range(TIMED_STEPS):
        parts.stepper.take(images, step, 0.5, 0.0)
        clock.append(_now(runtime))
    if (
        parts.stepper.micro_batches.pieces != parts.plan.training.gradient_accumulation_steps
    ):  # it would be timed in other pieces
        return math.inf
    return statistics.median(after - before for before, after in itertools.pairwise(clock))


def _now(runtime: Runtime) -> float:
    runtime.wait()
    return time.perf_counter()
