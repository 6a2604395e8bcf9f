"""What `auto` means for batch size and torch.compile, measured on a GPU, by rule elsewhere; and for memory format.

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
"""Steps from which on a trial, some 8 steps, costs less than the smallest gain that counts."""
LONG_SECONDS = 20 * 60.0
"""A run from which on the minute that compiling takes is risked to find out whether it helps."""
GAIN = 0.97
"""Part of the time that a compiled step has to take at most: less is noise."""
BEFORE: dict[str, object] = {"memory_format": "contiguous", "compile": False}
"""How runs were computed whose records hold `auto`: there was no choice then."""
NO_ROOM = "auto: off; not enough memory for a trial"

Trial = Callable[[bool], float | None]
"""Whether compiled -> seconds per step; None on out-of-memory."""


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


def with_kernels(
    resolved: ResolvedConfig, data: DataSets, runtime: Runtime, recorded: TrainingConfig | None, observer: Observer
) -> ResolvedConfig:
    """The settings with an answer for `training.memory_format` and `training.compile`.

    Args:
        recorded: on resume, what the run took when it began.
    """
    requested, reasons = resolved.config.training, dict(resolved.reasons)
    config, unresolved = resolved.config, [name for name in BEFORE if getattr(requested, name) == "auto"]
    for name in tuple(unresolved):  # what `auto` was resolved to when the run began
        if recorded and not (name == "compile" and requested.deterministic):
            value = getattr(recorded, name)
            config = config.replace(**{f"training.{name}": BEFORE[name] if value == "auto" else value})
            reasons[f"training.{name}"] = "auto: as when this run began"
            unresolved.remove(name)
    if "memory_format" in unresolved:
        # tensor cores take numbers of 16 bits channels last; everything else is faster, or as fast, contiguous
        half = runtime.device.type == "cuda" and runtime.dtype in (torch.bfloat16, torch.float16)
        config = config.replace(**{"training.memory_format": "channels_last" if half else "contiguous"})
        dtype = str(runtime.dtype).removeprefix("torch.")
        reasons["training.memory_format"] = f"auto: usual for {dtype} on {runtime.device.type}"
    if "compile" in unresolved:

        def measured(compiled: bool) -> float | None:
            observer.phase(f"timing a step{', compiled' if compiled else ''}", 0, None)
            return _seconds_per_step(config, data, runtime, compiled)

        steps = total_steps(config, data)
        choice = choose_compile(requested.deterministic, runtime, steps, measured) if runtime.is_main else (False, "")
        compiled, reasons["training.compile"] = runtime.broadcast_object(choice)
        config = config.replace(**{"training.compile": compiled})
    return ResolvedConfig(config, resolved.substitutions, reasons)


def choose_compile(deterministic: bool, runtime: Runtime, steps: int, seconds: Trial) -> tuple[bool, str]:
    """The main process's choice, and why.

    Args:
        steps: of the whole run.
        seconds: called only where a measurement can repay itself.
    """
    if runtime.device.type != "cuda":
        return False, f"auto: off; nothing is timed on {runtime.device.type} (docs/performance.md)"
    if deterministic:
        return False, "auto: off; training.deterministic takes no kernels by their timing"
    if steps < LONG_STEPS:
        return False, f"auto: off; {steps:,} steps do not repay a trial"
    if (pace := seconds(False)) is None:
        return False, NO_ROOM
    if steps * pace < LONG_SECONDS:
        minutes = max(steps * pace / 60, 1)
        return False, f"auto: a run of about {minutes:.0f} min is too short to repay compiling"
    try:
        took = seconds(True)
    except EnvironmentProblem as error:
        return False, f"auto: {error}"
    if took is None:
        return False, NO_ROOM
    return took < GAIN * pace, f"auto: measured {1e3 * took:.1f} ms per step compiled, {1e3 * pace:.1f} ms without"


def _seconds_per_step(config: RunConfig, data: DataSets, runtime: Runtime, compiled: bool) -> float | None:
    """Median seconds per step of this rank's share of a batch, on weights of its own; None on out-of-memory."""
    single = runtime.with_memory_format(config.training.memory_format).single_process()
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
