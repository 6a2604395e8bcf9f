"""What `training.batch_size auto` stands for: on a GPU the largest batch that fits, elsewhere a rule.

It is found once, before the first step, by steps on a model that is thrown away. The run records the number, and a
resumed run takes it from there.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from unified_vae.config.run import RunConfig
from unified_vae.data.batches import gather
from unified_vae.data.dataset import DataSets
from unified_vae.experiment.fitting.assemble import Parts, Resolved, build_parts, calibrate, shared_batch
from unified_vae.training.memory import attempted
from unified_vae.training.runtime import Runtime
from unified_vae.training.step import in_unit_range

STEPS_AN_EPOCH = 16
"""At least: larger batches would leave too few steps to learn anything."""
ENOUGH = 64
"""Images in a batch beyond which a CPU gains no speed."""
TRIAL_STEPS = 2  # the optimizer takes its own memory in the first one
LOOKED_AT = 2  # images whose memory is measured


def with_batch_size(resolved: Resolved, data: DataSets, runtime: Runtime, recorded: int | None) -> Resolved:
    """The settings with a number in place of `auto`, and its reason.

    Args:
        recorded: what the run was begun with; None for a fresh run.

    Raises:
        ConfigError: the batch cannot be shared out over the devices.
        EnvironmentProblem: not one image fits.
    """
    training = resolved.config.training
    if training.batch_size != "auto":
        return resolved
    if recorded is not None:
        size, reason = recorded, "auto: as when this run began"
    else:
        size, reason = _found(resolved.config, data, runtime)
    config = shared_batch(resolved.config, size, len(data.train), runtime.world_size)
    return Resolved(config, resolved.substitutions, {**resolved.reasons, "training.batch_size": reason})


def _found(config: RunConfig, data: DataSets, runtime: Runtime) -> tuple[int, str]:
    """A number and its reason; the same on every process."""
    at_once = (
        config.training.gradient_accumulation_steps * runtime.world_size
    )  # images of a batch for each one in a micro-batch
    most = max(len(data.train) // STEPS_AN_EPOCH, min(len(data.train), at_once)) // at_once
    parts = build_parts(_tried(config, at_once, data, runtime), data, runtime)
    calibrate(parts, *_batch(parts, data, 1), runtime)
    if runtime.device.type == "cuda":
        micro, reason = _largest(parts, data, runtime, max(most, 1))
    else:
        micro, reason = runtime.from_main(_by_rule(parts, data, runtime, max(most, 1)))
    del parts
    runtime.free_memory()
    runtime.forget_peak()
    return micro * at_once, f"auto: {reason}"


def _tried(config: RunConfig, batch: int, data: DataSets, runtime: Runtime) -> RunConfig:
    """The settings to try sizes with: uncompiled, for each size would be compiled, and torch stops after a few."""
    shared = shared_batch(config, batch, len(data.train), runtime.world_size)
    return shared.replace(**{"training.compile": False})


def _batch(parts: Parts, data: DataSets, count: int) -> tuple[Tensor, Tensor]:
    """Some training images in [0, 1] and noise, on the device."""
    device = parts.stepper.runtime.device
    images = gather(data.train, np.arange(count) % len(data.train)).to(device)
    return in_unit_range(images), torch.zeros(count, parts.model.latents, device=device)


def _largest(parts: Parts, data: DataSets, runtime: Runtime, most: int) -> tuple[int, str]:
    """The largest power of two that fits, by doubling."""
    size = 1
    while 2 * size <= most and _fits(parts, data, runtime, 2 * size):
        size *= 2
    bound = f"{STEPS_AN_EPOCH} steps an epoch are the least" if 2 * size > most else "more does not fit in memory"
    return size, f"the largest power of two; {bound}"


def _fits(parts: Parts, data: DataSets, runtime: Runtime, size: int) -> bool:
    """Whether steps of so many images on each device need no smaller pieces, on any of them."""
    micro_batches = parts.stepper.micro_batches

    def steps() -> bool:
        images = gather(data.train, np.arange(size) % len(data.train)).to(runtime.device)
        for _ in range(TRIAL_STEPS):
            micro_batches.pieces = 1
            parts.stepper.take(images, 0, 0.5, 0.0)
            if micro_batches.pieces > 1:
                return False
        return True

    (failed,) = runtime.agree([int(not attempted(steps, runtime))])
    runtime.free_memory()
    return not failed


def _by_rule(parts: Parts, data: DataSets, runtime: Runtime, most: int) -> tuple[int, str]:
    """ENOUGH images, or less where half of the available memory does not hold them or the set is small."""
    each = 2 * _bytes_an_image(parts, data)
    runtime.free_memory()  # what the start has used and this process keeps is available too
    available = runtime.available_memory() // runtime.world_size
    room = max(available // 2 // each, 1)
    size = _power_of_two(min(ENOUGH, most, room))
    bounds = {ENOUGH: "more are no faster on a CPU", most: f"{STEPS_AN_EPOCH} steps an epoch are the least"}
    bounds[room] = "half of the available memory holds no more"
    needs = f"about {size * each / 2**20:,.0f} MiB in a step, of {available / 2**20:,.0f} MiB available"
    return size, f"{needs}; {bounds[min(bounds)]}"


def _power_of_two(limit: int) -> int:
    """The largest one that is not above `limit`."""
    return int(2 ** (limit.bit_length() - 1))


def _bytes_an_image(parts: Parts, data: DataSets) -> int:
    """What the forward pass keeps for the backward pass; its gradients take about as much again."""
    images, noise = _batch(parts, data, LOOKED_AT)
    weights = {parameter.untyped_storage().data_ptr() for parameter in parts.model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), parts.stepper.runtime.autocast():
        output = parts.model(images, noise)
        parts.objective(output, images, 0.5)
    return max(sum(kept.values()) // LOOKED_AT, 1)
