"""One optimizer step: images -> model -> objective -> backward -> optimizer -> averaged weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from unified_vae.losses.objective import Objective
from unified_vae.models.vae import VAE
from unified_vae.optim.light_start import take_step
from unified_vae.training.ema import EMA
from unified_vae.training.random import latent_noise
from unified_vae.training.runtime import Runtime

MEASURED = ("loss.total", "loss.nll", "rate.nats")


class Stepper:
    """Takes steps. What a step computes depends on (weights, state, seed, step, images) alone.

    Attributes:
        names: names of the numbers that `take` returns, in order: the objective's parts, then each term,
            then the gradient's norm.
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
    ) -> None:
        self.runtime = runtime
        self.model = model
        self.wrapped: nn.Module = runtime.wrap(model)
        self.ema = ema
        self.objective = objective
        self.optimizer = optimizer
        self.seed = seed
        self.accumulate = accumulate
        self.clip_norm = clip_norm
        # fused kernels can skip an update on the device; other optimizers ignore `found_inf`
        self.guards_itself = runtime.fused and bool(optimizer.defaults.get("fused"))
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.dtype == torch.float16)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.term_names = list(objective.terms)
        self.names = [*MEASURED, *(f"loss.{name}" for name in self.term_names), "gradient.norm"]

    def take(self, images: Tensor, step: int, progress: float, lr: float) -> Tensor:
        """Take step number `step` (counted from 0).

        Args:
            images: this rank's share of the batch, [share, channels, size, size] in [0, 1], on the device.
            step: steps taken before this one.
            progress: part of the run that is done, for the schedules of the weights.
            lr: learning rate of this step.

        Returns:
            The numbers of `names`, averaged over the batch and all ranks, on the device. Where one of the
            first or the last is not finite, the weights were left alone.
        """
        share = len(images)
        batch_size = share * self.runtime.world_size
        noise = latent_noise(
            self.seed, step, batch_size, self.model.latents, self.runtime.rank, self.runtime.world_size, images.device
        )
        measured = self._backward(images, noise, progress)
        norm = self._update(lr)
        self.ema.update(step + 1)
        measured = self.runtime.mean(measured)
        self.objective.observe(dict(zip(self.term_names, measured[len(MEASURED) :], strict=True)))
        if self.scaler.is_enabled():  # an overflow of fp16 gradients is no news: the scaler skips it and adapts
            norm = torch.where(torch.isfinite(norm), norm, torch.zeros_like(norm))
        return torch.cat([measured, norm.reshape(1)])

    def _backward(self, images: Tensor, noise: Tensor, progress: float) -> Tensor:
        """Gradients of the whole share, micro-batch by micro-batch; returns the measured numbers."""
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros(len(self.names) - 1, device=images.device)
        pieces = list(zip(images.tensor_split(self.accumulate), noise.tensor_split(self.accumulate), strict=True))
        for number, (some_images, some_noise) in enumerate(pieces, start=1):
            part = len(some_images) / len(images)
            with self.runtime.accumulating(self.wrapped, last=number == len(pieces)):
                with self.runtime.autocast():
                    output = self.wrapped(some_images, some_noise)
                value = self.objective(output, some_images, progress)
                self.scaler.scale(value.loss * part).backward()
            terms = [value.terms[name] for name in self.term_names]
            total += part * torch.stack([value.loss.detach(), value.nll, value.rate, *terms])
        return total

    def _update(self, lr: float) -> Tensor:
        """Clip and step; returns the gradient's norm before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip_norm, norm)
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif self.guards_itself:
            # the fused kernels skip the update on the device itself where this is 1: no wait for the host
            self.optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
            self.optimizer.grad_scale = None  # type: ignore[attr-defined]
            take_step(self.optimizer)
        elif bool(torch.isfinite(norm)):
            take_step(self.optimizer)
        return norm
