"""One optimizer step: images -> model -> objective -> backward -> optimizer -> averaged weights.

A step whose loss or gradient is not finite on any device changes nothing on all of them: neither weights nor moments,
neither averaged weights nor the scale of the distortion. The device itself decides that, so the host never waits.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.optim import Optimizer

from unified_vae.core.vae_output import VAEOutput
from unified_vae.losses.objective import Objective
from unified_vae.models.vae import VAE
from unified_vae.optim.light_start import take_step
from unified_vae.training.compiler import its_failures_told, with_the_compiler
from unified_vae.training.ema import EMA
from unified_vae.training.memory import MicroBatches
from unified_vae.training.random import latent_noise
from unified_vae.training.runtime import Runtime

MEASURED = ("loss.total", "loss.nll", "rate.nats")
NORM = "gradient.norm"

Network = Callable[[VAE, Objective, Tensor, Tensor], tuple[VAEOutput, dict[str, Tensor]]]


class Stepper:
    """Takes steps. What a step computes depends on (weights, state, seed, step, images) alone.

    Attributes:
        names: names of the numbers that `take` returns, in order: the objective's parts, then each term,
            then the gradient's norm.
        micro_batches: in how many pieces a batch is taken. That changes no result but for rounding.
    """

    def __init__(
        self,
        runtime: Runtime,
        model: VAE,
        ema: EMA[VAE],
        objective: Objective,
        optimizer: Optimizer,
        *,
        seed: int,
        accumulate: int,
        clip_norm: float | None,
        compiled: bool = False,
    ) -> None:
        self.runtime = runtime
        self.model = model
        self.ema = ema
        self.objective = objective
        self.optimizer = optimizer
        self.seed = seed
        self.micro_batches = MicroBatches(runtime, accumulate)
        self.clip_norm = clip_norm
        # fused kernels can skip an update on the device; other optimizers ignore `found_inf`
        self.guards_itself = runtime.fused and bool(optimizer.defaults.get("fused"))
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.dtype == torch.float16)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.term_names = list(objective.terms)
        self.names = [*MEASURED, *(f"loss.{name}" for name in self.term_names), NORM]
        # a method of its own object kept here would be a cycle, and hold a trial's memory until the next collection
        self._compiled: Network | None = with_the_compiler(network) if compiled else None

    def take(self, images: Tensor, step: int, progress: float, lr: float) -> Tensor:
        """Take step number `step` (counted from 0).

        Args:
            images: this rank's share of the batch, [share, channels, size, size], uint8 or in [0, 1], on the device.
            step: steps taken before this one.
            progress: part of the run that is done, for the schedules of the weights.
            lr: learning rate of this step.

        Returns:
            The numbers of `names`, averaged over the batch and all ranks, on the device. Where one of them is not
            finite, the step was skipped.

        Raises:
            EnvironmentProblem: memory does not suffice for one image at a time.
        """
        share = len(images)
        batch_size = share * self.runtime.world_size
        noise = latent_noise(
            self.seed, step, batch_size, self.model.latents, self.runtime.rank, self.runtime.world_size, images.device
        )
        means = self.runtime.mean(self._gradients(images, noise, progress))
        norm = self._exchanged_norm()
        measured = torch.cat([means, norm.reshape(1)])
        skip = any_not_finite(measured)
        self._update(lr, norm, skip)
        self.ema.update(step + 1, skip)
        self.objective.observe(dict(zip(self.term_names, means[len(MEASURED) :], strict=True)), skip)
        return measured

    def _gradients(self, images: Tensor, noise: Tensor, progress: float) -> Tensor:
        """Gradients of this rank's share, in pieces that fit in memory; returns the measured numbers."""
        share, fit = len(images), self.micro_batches.fit
        whole_kl: Tensor | None = None
        if self.objective.bends_at_the_mean and self.runtime.world_size > 1:
            whole_kl = self.runtime.mean(fit(share, lambda pieces: self._mean_kl(images, pieces)))
        return fit(share, lambda pieces: self._backward(images, noise, progress, pieces, whole_kl))

    def _backward(self, images: Tensor, noise: Tensor, progress: float, pieces: int, whole_kl: Tensor | None) -> Tensor:
        """Gradients of the share, micro-batch by micro-batch; returns the measured numbers."""
        self.optimizer.zero_grad(set_to_none=True)
        if whole_kl is None and pieces > 1 and self.objective.bends_at_the_mean:
            whole_kl = self._mean_kl(images, pieces)
        if pieces == 1:
            return self._of_piece(images, noise, progress, 1.0, whole_kl)
        total = torch.zeros(len(self.names) - 1, device=images.device)
        for some_images, some_noise in zip(images.tensor_split(pieces), noise.tensor_split(pieces), strict=True):
            part = len(some_images) / len(images)
            total += part * self._of_piece(some_images, some_noise, progress, part, whole_kl)
        return total

    def _of_piece(self, images: Tensor, noise: Tensor, progress: float, part: float, whole_kl: Tensor | None) -> Tensor:
        """Add the gradients of a piece, which is `part` of the share; returns its measured numbers."""
        images = self._pixels(images)
        with self.runtime.autocast():
            output, terms = self._forward(images, noise)
        value = self.objective(output, images, progress, whole_kl, terms)
        self._differentiate(self.scaler.scale(value.loss if part == 1.0 else value.loss * part))
        measured = [value.terms[name] for name in self.term_names]
        return torch.stack([value.loss.detach(), value.nll, value.rate, *measured])

    def _pixels(self, images: Tensor) -> Tensor:
        return in_unit_range(images, self.runtime.layout)

    def _forward(self, images: Tensor, noise: Tensor) -> tuple[VAEOutput, dict[str, Tensor]]:
        return (self._compiled or network)(self.model, self.objective, images, noise)

    def _differentiate(self, loss: Tensor) -> None:
        with its_failures_told() if self._compiled else nullcontext():
            loss.backward()

    @torch.no_grad()
    def _mean_kl(self, images: Tensor, pieces: int) -> Tensor:
        """[latents]: mean KL of each unit over the share, for a loss that bends at that of the whole batch."""
        total = torch.zeros(self.model.latents, device=images.device)
        for some in images.tensor_split(pieces):
            with self.runtime.autocast():
                posterior = self.model.encode(self._pixels(some))
            total += posterior.kl_per_unit().sum(0)
        return total / len(images)

    def _exchanged_norm(self) -> Tensor:
        """Gradients become those of the whole batch, without the scale of fp16; returns their norm."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        self.runtime.average(gradients)
        self.scaler.unscale_(self.optimizer)
        return torch.nn.utils.get_total_norm(gradients)

    def _update(self, lr: float, norm: Tensor, skip: Tensor) -> None:
        """Clip and step, unless `skip` is 1."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self.guards_itself:
            # the fused kernels skip the update on the device itself where this is 1: no wait for the host;
            # and they divide the gradients as they read them: no pass over the memory for clipping
            self.optimizer.found_inf = skip  # type: ignore[attr-defined]
            self.optimizer.grad_scale = self._excess(norm)  # type: ignore[attr-defined]
            take_step(self.optimizer)
        elif not bool(skip):
            if self.clip_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip_norm, norm)
            take_step(self.optimizer)
        if self.scaler.is_enabled():
            self.scaler.update()

    def _excess(self, norm: Tensor) -> Tensor | None:
        """By how much the gradients are too long, at least 1."""
        return None if self.clip_norm is None else (norm / self.clip_norm).clamp(min=1.0)


def network(model: VAE, objective: Objective, images: Tensor, noise: Tensor) -> tuple[VAEOutput, dict[str, Tensor]]:
    """All of a step that is computed of tensors alone, whatever its number: what may be compiled."""
    output = model(images, noise)
    return output, objective.measure(output, images)


def any_not_finite(numbers: Tensor) -> Tensor:
    """1.0 where one of the numbers is NaN or infinite, else 0.0: a scalar on their device."""
    if numbers.device.type not in ("cpu", "cuda"):
        return torch.isfinite(numbers).all().logical_not().float()
    found = torch.zeros((), device=numbers.device)
    # one kernel instead of seven; times 1, the numbers stay as they are
    torch._amp_foreach_non_finite_check_and_unscale_([numbers], found, torch.ones((), device=numbers.device))
    return found


def in_unit_range(images: Tensor, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    """uint8 images as floats in [0, 1], floats as they are; with their numbers in the order `layout`."""
    if images.dtype == torch.uint8:
        return images.to(torch.float32, memory_format=layout).div_(255)
    return images.contiguous(memory_format=layout)
