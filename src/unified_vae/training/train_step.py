"""One optimizer step: the protocol that the trainer calls, the update that every step shares, and the VAE's step.

A step whose loss or gradient is NaN/Inf on any rank changes nothing on all of them: neither weights nor moments,
neither averaged weights nor the scale of the distortion. The device itself decides that, so the host never waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.autograd.profiler import record_function
from torch.optim import Optimizer

from unified_vae.config.data import AugmentConfig
from unified_vae.config.loss import LIKELIHOOD_METRICS
from unified_vae.core.distributions import VAEOutput
from unified_vae.core.errors import ConfigError
from unified_vae.core.rng import latent_noise
from unified_vae.data.augment import augment
from unified_vae.data.batches import TrainBatch
from unified_vae.losses.kl import kl_per_image
from unified_vae.losses.objective import Objective
from unified_vae.models.vae import VAE
from unified_vae.training.checkpointer import JsonState, OptimizerState, Stateful
from unified_vae.training.compile import compile_fn, translate_compile_errors
from unified_vae.training.distributed import Runtime
from unified_vae.training.ema import EMA
from unified_vae.training.memory import MicroBatches

GRADIENT_NORM = "gradient.norm"
OBJECTIVE_METRICS = ("loss.total", "loss.nll", "rate.nats")

PARTS = (
    "data: augmentation",
    "forward",
    "loss: rate and calibration",
    "backward",
    "gradient norm",
    "optimizer",
    "averaged weights",
)
"""Names that a step has in torch's profiler."""

MicroStep = Callable[..., tuple[Tensor, Tensor]]
"""Called with one micro-batch of each tensor of the batch, and `num_micro_batches`; returns (loss, metrics): the mean
loss over the micro-batch, scalar, and detached metrics, [k], means over it too."""


class TrainStep(Protocol):
    """One optimizer step on one batch, with whatever networks and optimizers it takes.

    What a call computes depends on (weights, state, batch, step) alone, so that a resumed run repeats it bit for bit.

    Attributes:
        names: names of the metrics that a call returns, in order; the last is a gradient norm.
        optimizers: by name; the trainer multiplies each group's `initial_lr` by the schedule's factor.
        stateful: what a checkpoint has to hold, by the name of its file or entry.
        micro_batches: how many micro-batches each rank splits its local batch into.
    """

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def optimizers(self) -> Mapping[str, Optimizer]: ...

    @property
    def stateful(self) -> Mapping[str, Stateful]: ...

    @property
    def micro_batches(self) -> MicroBatches: ...

    def __call__(self, batch: TrainBatch, step: int) -> Tensor:
        """Take step number `step` (counted from 0); returns the metrics of `names`, means over all ranks' images, on
        the device. Where one of them is NaN/Inf, the step changed nothing."""
        ...

    def metrics_to_log(self, means: Mapping[str, float], step: int) -> dict[str, float]:
        """The means of `names` and what follows from them and the state at a step (counted from 0), such as beta."""
        ...

    def find_non_finite(self, batch: TrainBatch, step: int) -> dict[str, Tensor]:
        """Name of a metric -> [images] bool on the CPU: the images of a batch that give NaN/Inf with the weights as
        they are; empty where the step cannot tell."""
        ...


class GradientUpdater:
    """Backward pass and update of some optimizers, the same for every network.

    Micro-batches that shrink on out-of-memory, gradients averaged over ranks, fp16 loss scaling, clipping, and the
    skipping of steps with NaN/Inf. A step with a second loss (a discriminator's) has a second updater.

    Args:
        parameters: what the optimizers update; their gradients are exchanged and clipped together.
        micro_batches: shared by the updaters of a step; None for whole batches, split where memory is short.
        max_grad_norm: bound on the gradient norm; None for none.
    """

    def __init__(
        self,
        runtime: Runtime,
        optimizers: Iterable[Optimizer],
        parameters: Iterable[nn.Parameter],
        micro_batches: MicroBatches | None = None,
        max_grad_norm: float | None = None,
    ) -> None:
        self.runtime = runtime
        self.optimizers = list(optimizers)
        self.parameters = [p for p in parameters if p.requires_grad]
        self.micro_batches = micro_batches or MicroBatches(runtime)
        self.max_grad_norm = max_grad_norm
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.dtype == torch.float16)

    def apply_gradients(
        self, micro_step: MicroStep, batch: Sequence[Tensor], compiled: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Compute gradients of a batch, and update the weights unless something is NaN/Inf.

        Args:
            micro_step: computes the loss of a micro-batch.
            batch: this rank's tensors, of equal first dimension.
            compiled: whether the loss is of a compiled graph, whose backward pass is compiled in here.

        Returns:
            ([k + 1], scalar): the metrics' means over all ranks with the gradient norm appended, and 1.0 where the
            update was skipped, else 0.0, both on the device.

        Raises:
            EnvironmentProblem: out of memory with one image at a time.
        """
        size = len(batch[0])

        def backward(num_micro_batches: int) -> Tensor:
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none=True)
            total: Tensor | None = None
            chunks = zip(*(tensor.tensor_split(num_micro_batches) for tensor in batch), strict=True)
            for chunk in chunks:
                weight = len(chunk[0]) / size
                loss, metrics = micro_step(*chunk, num_micro_batches=num_micro_batches)
                with record_function("backward"), translate_compile_errors() if compiled else nullcontext():
                    self.scaler.scale(loss if weight == 1.0 else loss * weight).backward()
                weighted = metrics if weight == 1.0 else weight * metrics
                total = weighted if total is None else total + weighted
            assert total is not None
            return total

        means = self.runtime.all_reduce_mean(self.micro_batches.run_with_oom_retry(size, backward))
        with record_function("gradient norm"):
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            self.runtime.all_reduce_gradients(gradients)
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
            norm = torch.nn.utils.get_total_norm(gradients)
            metrics = torch.cat([means, norm.reshape(1)])
            skip = has_non_finite(metrics)
        with record_function("optimizer"):
            self._update(norm, skip)
        return metrics, skip

    def _update(self, norm: Tensor, skip: Tensor) -> None:
        """Clip and step, unless `skip` is 1."""
        # fused kernels skip the update on the device itself where `found_inf` is 1: the host need not wait; and they
        # divide gradients by `grad_scale` as they read them: clipping takes no pass over the memory
        fused = [self.runtime.fused and bool(optimizer.defaults.get("fused")) for optimizer in self.optimizers]
        clip = self.max_grad_norm
        if not all(fused) and not bool(skip) and clip is not None:
            unfused = [o for o, f in zip(self.optimizers, fused, strict=True) if not f]
            parameters = [p for o in unfused for group in o.param_groups for p in group["params"]]
            torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
        for optimizer, is_fused in zip(self.optimizers, fused, strict=True):
            if is_fused:
                optimizer.found_inf = skip  # type: ignore[attr-defined]
                optimizer.grad_scale = None if clip is None else (norm / clip).clamp(min=1.0)  # type: ignore[attr-defined]
                optimizer.step()
            elif not bool(skip):
                optimizer.step()
        if self.scaler.is_enabled():
            self.scaler.update()


class VAEStep:
    """The step of a VAE: images -> model -> objective -> backward -> optimizers -> averaged weights."""

    def __init__(
        self,
        runtime: Runtime,
        model: VAE,
        ema: EMA[VAE],
        objective: Objective,
        optimizers: Mapping[str, Optimizer],
        *,
        seed: int,
        total_steps: int,
        augment: AugmentConfig | None = None,
        num_micro_batches: int = 1,
        max_grad_norm: float | None = None,
        compile: bool = False,
    ) -> None:
        """Args:
        optimizers: by name; `build_optimizers` makes them.
        total_steps: of the whole run, for the schedules of the objective's weights.
        augment: settings of the augmentation; None for none.
        num_micro_batches: of each rank's local batch. It changes no result but for rounding.
        max_grad_norm: bound on the gradient norm; None for none.
        """
        self.runtime = runtime
        self.model = model
        self.ema = ema
        self.objective = objective
        self.optimizers = dict(optimizers)
        self.seed = seed
        self.total_steps = total_steps
        self.augment = augment or AugmentConfig()
        self.micro_batches = MicroBatches(runtime, num_micro_batches)
        self.updater = GradientUpdater(
            runtime, self.optimizers.values(), model.parameters(), self.micro_batches, max_grad_norm
        )
        self.term_names = list(objective.terms)
        self.names = [*OBJECTIVE_METRICS, *(f"loss.{name}" for name in self.term_names), GRADIENT_NORM]
        # a bound method kept here would be a cycle, and hold a trial's memory until the next garbage collection
        self.compiled = compile
        self._forward = compile_fn(forward_and_measure) if compile else forward_and_measure

    @property
    def stateful(self) -> dict[str, Stateful]:
        """Everything a checkpoint has to hold."""
        return {
            "model": self.model,
            "ema": self.ema.model,
            "objective": self.objective,
            "optimizer": OptimizerState(self.optimizers.values(), self.model),
            "scaler": JsonState(self.updater.scaler),
        }

    def __call__(self, batch: TrainBatch, step: int) -> Tensor:
        images, noise = self.inputs(batch, step)
        progress = step / self.total_steps
        batch_mean_kl: Tensor | None = None
        if self.objective.needs_batch_kl and self.runtime.world_size > 1:
            local = self.micro_batches.run_with_oom_retry(len(images), lambda n: self._mean_kl(images, n))
            batch_mean_kl = self.runtime.all_reduce_mean(local)

        def micro_step(images_: Tensor, noise_: Tensor, num_micro_batches: int) -> tuple[Tensor, Tensor]:
            nonlocal batch_mean_kl
            if batch_mean_kl is None and num_micro_batches > 1 and self.objective.needs_batch_kl:
                batch_mean_kl = self._mean_kl(images, num_micro_batches)
            pixels = to_unit_range(images_, self.runtime.memory_format)
            with record_function("forward"), self.runtime.autocast():
                output, terms = self._forward(self.model, self.objective, pixels, noise_)
            with record_function("loss: rate and calibration"):
                value = self.objective(output, pixels, progress, batch_mean_kl, terms)
            terms_ = [value.terms[name] for name in self.term_names]
            return value.loss, torch.stack([value.loss.detach(), value.nll, value.rate, *terms_])

        metrics, skip = self.updater.apply_gradients(micro_step, (images, noise), self.compiled)
        with record_function("averaged weights"):
            self.ema.update(step + 1, skip)
        terms = metrics[len(OBJECTIVE_METRICS) : -1]
        self.objective.observe(dict(zip(self.term_names, terms, strict=True)), skip)
        return metrics

    def inputs(self, batch: TrainBatch, step: int, runtime: Runtime | None = None) -> tuple[Tensor, Tensor]:
        """This rank's augmented images [local, channels, size, size], uint8 or in [0, 1], and the noise of a step
        [local, latents], on the device."""
        runtime = runtime or self.runtime
        with record_function("data: augmentation"):
            images = runtime.to_device(batch.images)
            images = augment(images, batch.indices, config=self.augment, seed=self.seed, epoch=batch.epoch)
        total = len(images) * runtime.world_size
        noise = latent_noise(
            self.seed, step, total, self.model.latents, runtime.rank, runtime.world_size, images.device
        )
        return images, noise

    def metrics_to_log(self, means: Mapping[str, float], step: int) -> dict[str, float]:
        """See `TrainStep`: adds beta, and bits per dimension and sigma where the objective has them."""
        values = dict(means)
        if self.objective.is_likelihood:
            nll, kl = torch.tensor(means["loss.nll"]), torch.tensor(means["rate.nats"])
            values["bits_per_dim"] = float(self.objective.bits_per_dim(nll, kl))
        else:
            values = {name: value for name, value in values.items() if name not in LIKELIHOOD_METRICS}
        values["beta"] = self.objective.beta(step / self.total_steps)
        if (sigma := self.objective.sigma()) is not None:
            values["sigma"] = sigma
        return values

    @torch.no_grad()
    def _mean_kl(self, images: Tensor, num_micro_batches: int) -> Tensor:
        """[latents]: mean KL of each unit over this rank's images, for an objective that needs that of the batch."""
        total = torch.zeros(self.model.latents, device=images.device)
        for chunk in images.tensor_split(num_micro_batches):
            with self.runtime.autocast():
                posterior = self.model.encode(to_unit_range(chunk, self.runtime.memory_format))
            total += posterior.kl_per_unit().sum(0)
        return total / len(images)

    @torch.no_grad()
    def find_non_finite(self, batch: TrainBatch, step: int) -> dict[str, Tensor]:
        """See `TrainStep`. Of each enabled term and the rate, forward once more as that step saw the images."""
        images, noise = self.inputs(batch, step, self.runtime.single_process())
        chunks: list[dict[str, Tensor]] = []
        num_chunks = min(self.micro_batches.count * self.runtime.world_size, len(images))
        for images_, noise_ in zip(images.tensor_split(num_chunks), noise.tensor_split(num_chunks), strict=True):
            pixels = to_unit_range(images_, self.runtime.memory_format)
            with self.runtime.autocast():
                output = self.model(pixels, noise_)
            reconstruction = output.reconstruction.detach().float().requires_grad_()
            bad = {}
            with torch.enable_grad(), torch.autocast(pixels.device.type, enabled=False):
                for name, term in self.objective.terms.items():
                    value = term(reconstruction, pixels.float())
                    (gradient,) = torch.autograd.grad(value.sum(), reconstruction)
                    bad[f"loss.{name}"] = ~(torch.isfinite(value.detach()) & torch.isfinite(gradient).flatten(1).all(1))
            bad["rate.nats"] = ~torch.isfinite(kl_per_image(output.posterior))
            chunks.append(bad)
        return {name: torch.cat([chunk[name] for chunk in chunks]).cpu() for name in chunks[0]}


def forward_and_measure(
    model: VAE, objective: Objective, images: Tensor, noise: Tensor
) -> tuple[VAEOutput, dict[str, Tensor]]:
    """All of a step that is computed of tensors alone, whatever its number: what may be compiled."""
    output = model(images, noise)
    return output, objective.measure(output, images)


def dead_terms(model: VAE, objective: Objective, images: Tensor, noise: Tensor) -> list[str]:
    """Names of enabled terms whose gradient is zero or missing: at the decoder, or for `kl` at the encoder.

    Guards against loss terms computed without gradients, a bug found in two published trainers. The gradients are those
    of the raw terms, so a warm-up that starts at 0 does not hide one. A frozen encoder or decoder is left out.

    Args:
        images: [batch, channels, size, size] in [0, 1], on the model's device.
        noise: [batch, latents].
    """

    def moves(value: Tensor, parameters: list[nn.Parameter]) -> bool:
        if not value.requires_grad:
            return False
        gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        return any(bool((gradient != 0).any()) for gradient in gradients if gradient is not None)

    output = model(images, noise)
    decoder = [p for p in model.decoder.parameters() if p.requires_grad]
    encoder = [p for p in model.encoder.parameters() if p.requires_grad]
    values = objective.measure(output, images)
    dead = [f"loss.{name}" for name, value in values.items() if not moves(value, decoder or encoder)]
    if encoder and objective.config.kl.weight > 0 and not moves(output.posterior.kl_per_unit().sum(1).mean(), encoder):
        dead.append("loss.kl")
    return dead


def refuse_dead_terms(model: VAE, objective: Objective, images: Tensor, noise: Tensor) -> None:
    """Raise ConfigError where a term is enabled and has no effect."""
    dead = dead_terms(model, objective, images, noise)
    if dead:
        raise ConfigError(
            f"{' and '.join(dead)} is enabled but does not move the weights it should (its gradient is zero), "
            "so this run would ignore it. Set its weight to 0, or report this."
        )


def scale_learning_rates(optimizers: Iterable[Optimizer], *factors: float) -> None:
    """Set every parameter group's rate to its `initial_lr` times the factors; a group without one gets its rate now."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            rate_ = group.setdefault("initial_lr", group["lr"])
            for factor in factors:
                rate_ = rate_ * factor
            group["lr"] = rate_


def has_non_finite(values: Tensor) -> Tensor:
    """1.0 where one of the values is NaN/Inf, else 0.0: a scalar on their device."""
    if values.device.type not in ("cpu", "cuda"):
        return torch.isfinite(values).all().logical_not().float()
    result = torch.zeros((), device=values.device)
    # one kernel instead of seven; times 1, the values stay as they are
    torch._amp_foreach_non_finite_check_and_unscale_([values], result, torch.ones((), device=values.device))
    return result


def to_unit_range(images: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    """Convert uint8 images to floats in [0, 1]; floats stay as they are."""
    if images.dtype == torch.uint8:
        return images.to(torch.float32, memory_format=memory_format).div_(255)
    return images.contiguous(memory_format=memory_format)
