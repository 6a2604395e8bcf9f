"""From a request to the parts of a run: data, resolved config, model, objective, optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unified_vae.config.loss import KLConfig, LossConfig
from unified_vae.config.run import ComposedRun, RunConfig
from unified_vae.core.counter import key
from unified_vae.core.errors import ConfigError, Diverged
from unified_vae.core.vae_output import VAEOutput
from unified_vae.data.augment import augment
from unified_vae.data.batches import steps_per_epoch, train_batches
from unified_vae.data.dataset import DataSets
from unified_vae.data.prepare import open_data
from unified_vae.experiment.diagnosis.preflight import Preflight
from unified_vae.losses.build import Substitution, build_objective, resolve_terms
from unified_vae.losses.convention import equivalent
from unified_vae.losses.objective import Objective
from unified_vae.models.build import build_model
from unified_vae.models.vae import VAE
from unified_vae.optim.build import build_optimizer
from unified_vae.training.ema import EMA
from unified_vae.training.memory import MicroBatches
from unified_vae.training.observers import Observer
from unified_vae.training.plan import Plan, settled_step
from unified_vae.training.random import latent_noise
from unified_vae.training.runtime import Runtime
from unified_vae.training.self_test import refuse_dead_terms
from unified_vae.training.step import Stepper, in_unit_range

SELF_TEST_IMAGES = 8


@dataclass(frozen=True)
class Resolved:
    """A config whose every `auto` was answered, and the answers' reasons (dotted path -> words)."""

    config: RunConfig
    substitutions: tuple[Substitution, ...]
    reasons: dict[str, str]


def open_images(run: ComposedRun, runtime: Runtime, observer: Observer) -> DataSets:
    """The images; the main process packs them first, the others then find them packed."""
    config, channels = run.config, run.config.model.channels
    wanted = None if channels == "auto" else channels

    def read() -> DataSets:
        return open_data(config.data, config.model.image_size, wanted, observer.phase)

    data = read() if runtime.is_main else None
    runtime.barrier()
    return data or read()


def resolve(
    run: ComposedRun, data: DataSets, runtime: Runtime, known: Sequence[Substitution] | None, flight: Preflight
) -> Resolved:
    """Answer what the config left open, but for a batch size of `auto`, which `batch_size.py` finds.

    Args:
        flight: the spectrum of the images, for a KL weight in another trainer's convention.
        known: on resume, the terms that were replaced when the run began; None for a fresh run.

    Raises:
        ConfigError: the batch cannot be shared out over the devices.
        EnvironmentProblem: a `strict` term's pretrained weights cannot be had.
    """
    reasons = {"model.channels": "the data"}
    config = run.config
    loss, substitutions = _resolved_terms(config.loss, known, runtime)
    for entry in substitutions:
        reasons[f"loss.{entry.term}"] = f"replaced by {entry.replacement}"
        reasons[f"loss.{entry.replacement}"] = f"in place of {entry.term}"
    if loss.kl.reduction != "nats":
        reasons["loss.kl"] = f"{loss.kl.weight:g} in {loss.kl.reduction}, converted for these images"
        loss = loss.replace(**{"kl.weight": _in_nats(loss.kl, flight), "kl.reduction": "nats"})
    resolved = config.replace(**{"loss": loss, "model.channels": data.channels})
    asked = config.training.batch_size
    if asked != "auto":
        resolved = shared_batch(resolved, asked, len(data.train), runtime.world_size)
        if resolved.training.batch_size != asked:
            reasons["training.batch_size"] = f"the set has {len(data.train)} training images"
    return Resolved(resolved, substitutions, reasons)


def shared_batch(config: RunConfig, wanted: int, images: int, world_size: int) -> RunConfig:
    """The settings with a batch that there are images for and that all devices can share.

    Raises:
        ConfigError: it cannot be shared out.
    """
    batch = _batch_size(wanted, images, world_size)
    accumulate = min(config.training.gradient_accumulation_steps, batch // world_size)
    return config.replace(**{"training.batch_size": batch, "training.gradient_accumulation_steps": accumulate})


def _in_nats(kl: KLConfig, flight: Preflight) -> float:
    """The beta with the same rate and distortion in linear theory."""
    spectrum = flight.spectrum
    rest = flight.rest + float(spectrum[flight.latents :].sum())
    return equivalent(kl.reduction, kl.weight, spectrum[: flight.latents], rest, flight.dimensions, flight.latents).beta


def _resolved_terms(
    loss: LossConfig, known: Sequence[Substitution] | None, runtime: Runtime
) -> tuple[LossConfig, tuple[Substitution, ...]]:
    """The main process looks for pretrained weights, and may download them; the others do as it did."""
    resolved, substitutions = resolve_terms(loss, known) if runtime.is_main else (loss, [])
    return runtime.from_main((resolved, tuple(substitutions)))


def _batch_size(wanted: int, images: int, world_size: int) -> int:
    """The batch of a step: what was asked for, or the whole set where that is smaller."""
    if wanted % world_size:
        below = max(wanted // world_size, 1) * world_size
        raise ConfigError(
            f"training.batch_size {wanted} cannot be shared by {world_size} processes: "
            f"give {below} or {below + world_size}."
        )
    return wanted if wanted <= images else max(images // world_size, 1) * world_size


@dataclass(frozen=True)
class Parts:
    """What a run is made of, on its device."""

    plan: Plan
    model: VAE
    ema: EMA[VAE]
    objective: Objective
    stepper: Stepper


def build_parts(config: RunConfig, data: DataSets, runtime: Runtime, pca_psnr: float | None = None) -> Parts:
    """Build everything that has weights or state, untrained.

    Args:
        pca_psnr: dB of a PCA with as many components as latents, to measure the model against.
    """
    training = config.training
    per_epoch = steps_per_epoch(len(data.train), training.images_a_step)
    total = min(training.epochs * per_epoch, training.max_steps or training.epochs * per_epoch)
    # of half precisions only bf16 has the range that features of any weights may need
    features_dtype = torch.bfloat16 if runtime.dtype == torch.bfloat16 else torch.float32
    objective = build_objective(config.loss, data.channels, config.model.image_size, features_dtype)
    objective = objective.to(runtime.device)
    plan = Plan(
        config.seed,
        total,
        per_epoch,
        training.images_a_step,
        settled_step(objective, training, total),
        training,
        config.data,
        pca_psnr,
    )
    model = build_model(config.model, seed=key(config.seed, "weights")).to(runtime.device)
    model = model.to(memory_format=runtime.layout)
    ema = EMA(model, training.ema_decay)
    optimizer = build_optimizer(training.optimizer, model, fused=runtime.fused)
    stepper = Stepper(
        runtime,
        model,
        ema,
        objective,
        optimizer,
        seed=config.seed,
        accumulate=training.gradient_accumulation_steps,
        clip_norm=training.max_grad_norm,
        compiled=training.compile is True,
    )
    return Parts(plan, model, ema, objective, stepper)


def first_batch(parts: Parts, data: DataSets, runtime: Runtime) -> tuple[Tensor, Tensor]:
    """This rank's images and noise of step 0, as the loop will see them: images in [0, 1] on the device."""
    plan = parts.plan
    batch = next(
        iter(
            train_batches(
                data.train,
                seed=plan.seed,
                start_step=0,
                end_step=1,
                batch_size=plan.batch_size,
                rank=runtime.rank,
                world_size=runtime.world_size,
                pin_memory=False,
            )
        )
    )
    raw = augment(
        batch.images.to(runtime.device), batch.indices, config=plan.data.augment, seed=plan.seed, epoch=batch.epoch
    )
    noise = latent_noise(
        plan.seed, 0, plan.batch_size, parts.model.latents, runtime.rank, runtime.world_size, runtime.device
    )
    return in_unit_range(raw, runtime.layout), noise


def self_test(parts: Parts, images: Tensor, noise: Tensor) -> None:
    """Refuse to train with a term that moves nothing. A few images suffice."""
    count = min(len(images), SELF_TEST_IMAGES)

    def look(pieces: int) -> bool:
        some = math.ceil(count / pieces)
        refuse_dead_terms(parts.model, parts.objective, images[:some], noise[:some])
        return True

    MicroBatches(parts.stepper.runtime, 1).fit(count, look)


@torch.no_grad()
def calibrate(parts: Parts, images: Tensor, noise: Tensor, runtime: Runtime) -> None:
    """Give the distortion's scale its first value: the terms of the untrained (or given) model on one batch.

    Raises:
        Diverged: a term is not finite there already.
    """
    names = parts.stepper.term_names

    def terms(output: VAEOutput, some: Tensor) -> Tensor:
        values = parts.objective.measure(output, some)
        return torch.stack([values[name] for name in names])

    means = _mean_over_batch(parts, images, noise, runtime, terms)
    if bad := [f"loss.{name}" for name, mean in zip(names, means.tolist(), strict=True) if not math.isfinite(mean)]:
        raise Diverged(
            f"{' and '.join(bad)} is not finite on the first batch, before any step. Give it weight 0, or train with "
            "--precision fp32."
        )
    parts.objective.observe(dict(zip(names, means, strict=True)))


@torch.no_grad()
def first_point(parts: Parts, images: Tensor, noise: Tensor, runtime: Runtime, progress: float) -> tuple[float, float]:
    """Distortion and rate of the model as it stands, in nats per image, on one batch with drawn latents."""

    def point(output: VAEOutput, some: Tensor) -> Tensor:
        value = parts.objective(output, some, progress)
        return torch.stack([value.nll, value.rate])

    nll, rate = _mean_over_batch(parts, images, noise, runtime, point).tolist()
    return nll, rate


def _mean_over_batch(
    parts: Parts, images: Tensor, noise: Tensor, runtime: Runtime, measure: Callable[[VAEOutput, Tensor], Tensor]
) -> Tensor:
    """The mean of a measured vector over the micro-batches and ranks of a batch."""

    def of_this_rank(pieces: int) -> Tensor:
        total = torch.zeros((), device=runtime.device)
        for some_images, some_noise in zip(images.tensor_split(pieces), noise.tensor_split(pieces), strict=True):
            with runtime.autocast():
                output = parts.model(some_images, some_noise)
            total = total + len(some_images) / len(images) * measure(output, some_images)
        return total

    return runtime.mean(parts.stepper.micro_batches.fit(len(images), of_this_rank))
