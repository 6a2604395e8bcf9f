"""What `auto` means for batch size, memory format and torch.compile: measured on a GPU, by rule elsewhere.

All of them change results, if only by rounding. So the answer is found when a run begins, by steps on a model that is
thrown away, written into the run's record, and kept when it is resumed. A CPU goes by a table: two starts of the same
run give the same bits there, which a race between steps on a busy machine would break (docs/performance.md has
figures).
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
from torch import Tensor

from unified_vae.config.run import RunConfig
from unified_vae.config.training import TrainingConfig
from unified_vae.core.errors import EnvironmentProblem
from unified_vae.core.events import Observer
from unified_vae.data.batches import TrainBatch, gather
from unified_vae.data.dataset import DataSets
from unified_vae.pipeline.build import ResolvedConfig, build_vae_step, calibrate, total_steps, with_shared_batch
from unified_vae.training.distributed import Runtime
from unified_vae.training.memory import available_memory, try_or_none_on_oom
from unified_vae.training.train_step import VAEStep, scale_learning_rates, to_unit_range

MIN_STEPS_PER_EPOCH = 16
"""Larger batches would leave too few steps to learn anything."""
MAX_CPU_BATCH = 64
"""Images per batch beyond which a CPU gains no speed."""
TRIAL_STEPS = 2  # the optimizer takes its own memory in the first one
WARM_UP_STEPS, TIMED_STEPS = 3, 5
LONG_STEPS = 1000
"""Steps from which on a trial of both memory formats, some 16 steps, costs less than the smallest gain that counts."""
LONG_SECONDS = 20 * 60.0
"""A run from which on the minute that compiling takes is risked to find out whether it helps."""
GAIN = 0.97
"""Part of the time that the other way has to take at most: less is noise."""
BEFORE: dict[str, object] = {"memory_format": "contiguous", "compile": False}
"""How runs were computed whose records hold `auto`: there was no choice then."""
NOT_TIMED = "nothing is timed"
NO_ROOM = "not enough memory for a trial"

Trial = Callable[[str, bool], float | None]
"""(memory format, compiled) -> seconds per step; None on out-of-memory."""

StepTime = float | str
"""Seconds per step, or why they are not known."""


# --- batch size ------------------------------------------------------------------------------------------


def with_batch_size(resolved: ResolvedConfig, data: DataSets, runtime: Runtime, recorded: int | None) -> ResolvedConfig:
    """The settings with a number in place of `auto`, and its reason; the same on every rank.

    Args:
        recorded: what the run was begun with; None for a new run.

    Raises:
        ConfigError: the batch cannot be shared by the ranks.
        EnvironmentProblem: not one image fits.
    """
    config, training = resolved.config, resolved.config.training
    if training.batch_size != "auto":
        return resolved
    if recorded is not None:
        size, reason = recorded, "auto: as when this run began"
    else:
        # images of a batch for each one in a micro-batch
        unit = training.gradient_accumulation_steps * runtime.world_size
        most = max(len(data.train) // MIN_STEPS_PER_EPOCH, min(len(data.train), unit)) // unit
        # uncompiled, for each size would be compiled, and torch stops after a few
        trial = with_shared_batch(config, unit, len(data.train), runtime.world_size)
        trial = trial.replace(**{"training.compile": False})
        step = build_vae_step(trial, data, runtime)
        images = to_unit_range(_trial_batch(data, 1, runtime).images)
        calibrate(step, images, torch.zeros(1, step.model.latents, device=runtime.device))
        if runtime.device.type == "cuda":
            micro_batch, reason = _largest_that_fits(step, data, max(most, 1))
        else:
            micro_batch, reason = runtime.broadcast_object(_by_rule(step, data, max(most, 1)))
        del step
        runtime.empty_cache()
        runtime.reset_peak_memory()
        size, reason = micro_batch * unit, f"auto: {reason}"
    config = with_shared_batch(config, size, len(data.train), runtime.world_size)
    return ResolvedConfig(config, resolved.substitutions, {**resolved.reasons, "training.batch_size": reason})


def _trial_batch(data: DataSets, count: int, runtime: Runtime) -> TrainBatch:
    """The first training images, repeated where they are fewer, on the device."""
    indices = np.arange(count) % len(data.train)
    return TrainBatch(indices, 0, gather(data.train, indices).to(runtime.device))


def _largest_that_fits(step: VAEStep, data: DataSets, most: int) -> tuple[int, str]:
    """The largest power of two, by doubling, of images per rank whose steps need no micro-batches on any of them."""
    size, runtime, micro_batches = 1, step.runtime, step.micro_batches

    def takes_steps(count: int) -> bool:
        batch = _trial_batch(data, count, runtime)
        for _ in range(TRIAL_STEPS):
            micro_batches.count = 1
            scale_learning_rates(step.optimizers.values(), 0.0)
            step(batch, step.total_steps // 2)
            if micro_batches.count > 1:
                return False
        return True

    while 2 * size <= most:
        doubled = 2 * size
        fits = try_or_none_on_oom(lambda: takes_steps(doubled), runtime)  # noqa: B023  # called at once
        (failed,) = runtime.all_reduce_max([int(not fits)])
        runtime.empty_cache()
        if failed:
            return size, "the largest power of two; more does not fit in memory"
        size = doubled
    return size, f"the largest power of two; there should be at least {MIN_STEPS_PER_EPOCH} steps per epoch"


def _by_rule(step: VAEStep, data: DataSets, most: int) -> tuple[int, str]:
    """MAX_CPU_BATCH images, or less where half of the available memory does not hold them or the set is small."""
    runtime, images = step.runtime, to_unit_range(_trial_batch(data, 2, step.runtime).images)
    weights = {parameter.untyped_storage().data_ptr() for parameter in step.model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    # what the forward pass keeps for the backward pass; its gradients take about as much again
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), runtime.autocast():
        output = step.model(images, torch.zeros(len(images), step.model.latents, device=runtime.device))
        step.objective(output, images, 0.5)
    per_image = 2 * max(sum(kept.values()) // len(images), 1)
    runtime.empty_cache()  # what the start has used and this process keeps is available too
    available = available_memory() // runtime.world_size
    room = max(available // 2 // per_image, 1)
    bounds = {
        MAX_CPU_BATCH: "more are no faster on a CPU",
        most: f"there should be at least {MIN_STEPS_PER_EPOCH} steps per epoch",
        room: "half of the available memory holds no more",
    }
    limit = min(bounds)
    size = int(2 ** (limit.bit_length() - 1))
    needs = f"about {size * per_image / 2**20:,.0f} MiB per step, of {available / 2**20:,.0f} MiB available"
    return size, f"{needs}; {bounds[limit]}"


# --- memory format and compilation -----------------------------------------------------------------------


@dataclass(frozen=True)
class KernelChoice:
    """How the network is computed, and why."""

    memory_format: str
    compile: bool
    format_reason: str
    compile_reason: str


def with_kernels(
    resolved: ResolvedConfig, data: DataSets, runtime: Runtime, recorded: TrainingConfig | None, observer: Observer
) -> ResolvedConfig:
    """The settings with an answer for `training.memory_format` and `training.compile`.

    Args:
        recorded: on resume, what the run took when it began.
    """
    kept: dict[str, object] = {}
    requested = resolved.config.training
    for name, before in BEFORE.items():  # what `auto` was resolved to when the run began
        if recorded and getattr(requested, name) == "auto" and not (name == "compile" and requested.deterministic):
            value = getattr(recorded, name)
            kept[name] = before if value == "auto" else value
    config = resolved.config.replace(**{f"training.{name}": value for name, value in kept.items()})
    requested = config.training

    def measured(memory_format: str, compiled: bool) -> float | None:
        observer.phase(f"timing a step, {memory_format}{', compiled' if compiled else ''}", 0, None)
        return _seconds_per_step(config, data, runtime, memory_format, compiled)

    steps = total_steps(config, data)
    choice = runtime.broadcast_object(choose_kernels(requested, runtime, steps, measured) if runtime.is_main else None)
    assert choice is not None
    config = config.replace(**{"training.memory_format": choice.memory_format, "training.compile": choice.compile})
    reasons = {"training.memory_format": choice.format_reason, "training.compile": choice.compile_reason}
    reasons |= {f"training.{name}": "auto: as when this run began" for name in kept}
    return ResolvedConfig(config, resolved.substitutions, {**resolved.reasons, **reasons})


def choose_kernels(requested: TrainingConfig, runtime: Runtime, steps: int, seconds: Trial) -> KernelChoice:
    """The main process's choice.

    Args:
        steps: of the whole run.
        seconds: called only where a measurement can repay itself.
    """
    memory_format, format_reason, pace = _choose_format(requested, runtime, steps, seconds)
    if requested.compile != "auto":
        return KernelChoice(memory_format, requested.compile, format_reason, "as asked")
    compiled, reason = False, ""
    if isinstance(pace, str):
        reason = f"auto: off; {pace}"
    elif steps * pace < LONG_SECONDS:
        reason = f"auto: a run of about {max(steps * pace / 60, 1):.0f} min is too short to repay compiling"
    else:
        try:
            took = seconds(memory_format, True)
        except EnvironmentProblem as error:
            reason = f"auto: {error}"
        else:
            compiled = took is not None and took < GAIN * pace
            reason = f"auto: off; {NO_ROOM}"
            if took is not None:
                reason = f"auto: measured {1e3 * took:.1f} ms per step compiled, {1e3 * pace:.1f} ms without"
    return KernelChoice(memory_format, compiled, format_reason, reason)


def _choose_format(
    requested: TrainingConfig, runtime: Runtime, steps: int, seconds: Trial
) -> tuple[str, str, StepTime]:
    """The memory format, why, and the seconds per step: uncompiled, unless compiling is requested anyway."""
    unmeasured, compiled = "", requested.compile is True
    if runtime.device.type != "cuda":
        unmeasured = f"{NOT_TIMED} on {runtime.device.type} (docs/performance.md)"
    elif requested.deterministic:
        unmeasured = "training.deterministic takes no kernels by their timing"
    elif steps < LONG_STEPS:
        unmeasured = f"{steps:,} steps do not repay a trial"
    if requested.memory_format != "auto":
        needed = not unmeasured and requested.compile == "auto"
        took = seconds(requested.memory_format, compiled) if needed else None
        return requested.memory_format, "as asked", took or unmeasured or NO_ROOM
    # tensor cores take numbers of 16 bits channels last; everything else is faster, or as fast, contiguous
    half = runtime.dtype in (torch.bfloat16, torch.float16)
    usual = "channels_last" if runtime.device.type == "cuda" and half else "contiguous"
    known = f"auto: usual for {str(runtime.dtype).removeprefix('torch.')} on {runtime.device.type}"
    if unmeasured:
        return usual, f"{known}; {unmeasured}", unmeasured
    times = {name: seconds(name, compiled) for name in ("contiguous", "channels_last")}
    other = "contiguous" if usual == "channels_last" else "channels_last"
    usual_time, other_time = times[usual], times[other]
    if usual_time is None or other_time is None:
        return usual, f"{known}; {NO_ROOM}", usual_time or NO_ROOM
    text = ", ".join(f"{1e3 * took:.1f} ms per step {name}" for name, took in times.items() if took is not None)
    reason = f"auto: measured {text}{', compiled' if compiled else ''}"
    return (other, reason, other_time) if other_time < GAIN * usual_time else (usual, reason, usual_time)


def _seconds_per_step(
    config: RunConfig, data: DataSets, runtime: Runtime, memory_format: str, compiled: bool
) -> float | None:
    """Median seconds per step of this rank's share of a batch, on weights of its own; None on out-of-memory."""
    single = runtime.with_memory_format(memory_format).single_process()
    local_batch = config.training.images_per_step // runtime.world_size
    trial = config.replace(**{"training.batch_size": local_batch, "training.compile": compiled})

    def timed() -> float:
        step = build_vae_step(trial, data, single)
        batch = _trial_batch(data, local_batch, single)
        noise = torch.zeros(1, step.model.latents, device=single.device)
        calibrate(step, to_unit_range(batch.images[:1], single.memory_format), noise)
        scale_learning_rates(step.optimizers.values(), 0.0)
        clock = []
        for number in range(WARM_UP_STEPS + TIMED_STEPS + 1):
            single.synchronize()
            clock.append(time.perf_counter())
            step(batch, step.total_steps // 2 + number)
        if step.micro_batches.count != trial.training.gradient_accumulation_steps:
            return math.inf  # it would be timed in other micro-batches
        return statistics.median(after - before for before, after in itertools.pairwise(clock[WARM_UP_STEPS:]))

    seconds = try_or_none_on_oom(timed, runtime)
    runtime.empty_cache()
    runtime.reset_peak_memory()
    return seconds if seconds is not None and math.isfinite(seconds) else None
