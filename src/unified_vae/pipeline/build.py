"""From resolved settings to a training step and its schedule; used for the run itself and for trials of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unified_vae.config.run import RunConfig
from unified_vae.core.distributions import VAEOutput
from unified_vae.core.errors import ConfigError, Diverged
from unified_vae.core.rng import key
from unified_vae.data.batches import steps_per_epoch
from unified_vae.data.dataset import DataSets
from unified_vae.losses.build import Substitution, build_objective
from unified_vae.losses.objective import Objective
from unified_vae.models.build import build_model
from unified_vae.optim.build import build_optimizers, freeze_parameters
from unified_vae.training.distributed import Runtime
from unified_vae.training.ema import EMA
from unified_vae.training.state import TrainSchedule
from unified_vae.training.train_step import VAEStep


@dataclass(frozen=True)
class ResolvedConfig:
    """Settings whose every `auto` was answered, and the answers' reasons (dotted path -> words)."""

    config: RunConfig
    substitutions: tuple[Substitution, ...]
    reasons: dict[str, str]


def with_shared_batch(config: RunConfig, batch_size: int, images: int, world_size: int) -> RunConfig:
    """The settings with a batch that there are images for and that all ranks can share.

    Raises:
        ConfigError: it cannot be shared.
    """
    if batch_size % world_size:
        below = max(batch_size // world_size, 1) * world_size
        raise ConfigError(
            f"training.batch_size {batch_size} cannot be shared by {world_size} processes: "
            f"give {below} or {below + world_size}."
        )
    batch = batch_size if batch_size <= images else max(images // world_size, 1) * world_size
    accumulate = min(config.training.gradient_accumulation_steps, batch // world_size)
    return config.replace(**{"training.batch_size": batch, "training.gradient_accumulation_steps": accumulate})


def total_steps(config: RunConfig, data: DataSets) -> int:
    """Optimizer steps of a whole run."""
    training = config.training
    steps = training.epochs * steps_per_epoch(len(data.train), training.images_per_step)
    return min(steps, training.max_steps or steps)


def make_schedule(config: RunConfig, data: DataSets, objective: Objective, *, repairs: bool = False) -> TrainSchedule:
    """How long the run is, and from where on its best weights are selected: when all warm-ups have ended.

    The start may be the best too, where training only harms: but not the weights of a run that is repaired, nor where
    the objective changes to the end, as with GECO.
    """
    training, total = config.training, total_steps(config, data)
    warmup = max(training.lr_schedule.warmup, objective.warmup_end())
    return TrainSchedule(
        seed=config.seed,
        total_steps=total,
        steps_per_epoch=steps_per_epoch(len(data.train), training.images_per_step),
        batch_size=training.images_per_step,
        selection_start_step=min(math.ceil(warmup * total), total),
        select_start=not repairs and objective.warmup_end() < 1,
    )


def build_vae_step(config: RunConfig, data: DataSets, runtime: Runtime) -> VAEStep:
    """The step of a VAE, with untrained weights on the device."""
    steps, images = total_steps(config, data), len(data.train)
    training = config.training.resolve(steps, steps_per_epoch(images, config.training.images_per_step))
    assert training.ema_decay != "auto", "resolved above"
    # of half precisions only bf16 has the range that features of any weights may need
    features_dtype = torch.bfloat16 if runtime.dtype == torch.bfloat16 else torch.float32
    objective = build_objective(config.loss, data.channels, config.model.image_size, features_dtype)
    model = build_model(config.model, seed=key(config.seed, "weights")).to(runtime.device)
    model = model.to(memory_format=runtime.memory_format)
    freeze_parameters(model, training.parameter_groups)
    return VAEStep(
        runtime,
        model,
        EMA(model, training.ema_decay),
        objective.to(runtime.device),
        build_optimizers(training.optimizer, model, runtime.fused, training.parameter_groups),
        seed=config.seed,
        total_steps=steps,
        augment=config.data.augment.resolve(images, config.model.latents, data.channels),
        num_micro_batches=training.gradient_accumulation_steps,
        max_grad_norm=training.max_grad_norm,
        compile=training.compile is True,
    )


@torch.no_grad()
def calibrate(train_step: VAEStep, images: Tensor, noise: Tensor) -> None:
    """Give the distortion's scale its first value: the terms of the untrained (or given) model on one batch.

    Raises:
        Diverged: a term is NaN/Inf there already.
    """
    names, objective = train_step.term_names, train_step.objective

    def terms(output: VAEOutput, chunk: Tensor) -> Tensor:
        values = objective.measure(output, chunk)
        return torch.stack([values[name] for name in names])

    means = mean_over_batch(train_step, images, noise, terms)
    if bad := [f"loss.{name}" for name, mean in zip(names, means.tolist(), strict=True) if not math.isfinite(mean)]:
        raise Diverged(
            f"{' and '.join(bad)} is NaN/Inf on the first batch, before any step. Give it weight 0, or train with "
            "--precision fp32."
        )
    objective.observe(dict(zip(names, means, strict=True)))


def mean_over_batch(
    train_step: VAEStep, images: Tensor, noise: Tensor, measure: Callable[[VAEOutput, Tensor], Tensor]
) -> Tensor:
    """The mean of a measured vector over the micro-batches and ranks of a batch."""
    runtime = train_step.runtime

    def local(num_micro_batches: int) -> Tensor:
        total = torch.zeros((), device=runtime.device)
        chunks = zip(images.tensor_split(num_micro_batches), noise.tensor_split(num_micro_batches), strict=True)
        for images_, noise_ in chunks:
            with runtime.autocast():
                output = train_step.model(images_, noise_)
            total = total + len(images_) / len(images) * measure(output, images_)
        return total

    return runtime.all_reduce_mean(train_step.micro_batches.run_with_oom_retry(len(images), local))
