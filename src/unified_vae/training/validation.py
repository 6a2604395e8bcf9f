"""One pass over the validation set: what the averaged weights do, in numbers that no weight or warm-up moves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from unified_vae.losses.objective import Objective
from unified_vae.metrics.latent import LatentSums
from unified_vae.metrics.reconstruction import ReconstructionSums
from unified_vae.models.vae import VAE
from unified_vae.training.runtime import Runtime


@dataclass(frozen=True)
class ValidationResult:
    """Attributes:
    values: `psnr`, `psnr.mean_image` (dB), `rate.nats`, `active_units`, `bits_per_dim`, and each term.
    kl_per_unit: [latents], nats.
    active: [latents], whether each unit is active.
    """

    values: dict[str, float]
    kl_per_unit: list[float]
    active: list[bool]


@torch.no_grad()
def validate(
    model: VAE, objective: Objective, batches: Iterable[Tensor], runtime: Runtime, progress: float
) -> ValidationResult:
    """Reconstruct every image from the mean of its posterior.

    Args:
        model: evaluated as it is; its train/eval mode is put back afterwards.
        objective: the one that trains, its calibrated scale left alone.
        batches: this rank's images, uint8 [batch, channels, size, size].
        progress: part of the run that is done, for the weights in `loss.total`.
    """
    device, dtype = runtime.device, runtime.sums_dtype
    pictures = ReconstructionSums.empty(model.channels, model.image_size, device, dtype)
    latents = LatentSums.empty(model.latents, device, dtype)
    losses = torch.zeros(2 + len(objective.terms), device=device, dtype=dtype)
    was_training = model.training
    model.eval()
    try:
        for raw in batches:
            images = raw.to(device).float() / 255
            with runtime.autocast():
                output = model(images)
            value = objective(output, images, progress)
            terms = [value.terms[name] for name in objective.terms]
            losses += len(images) * torch.stack([value.loss, value.nll, *terms]).to(dtype)
            pictures.add(output.reconstruction, images)
            latents.add(output.posterior)
    finally:
        model.train(was_training)
    runtime.sum_in_place([losses, *pictures.tensors(), *latents.tensors()])
    loss, nll, *terms = (losses / pictures.images).tolist()
    active = latents.active()
    values = {
        "psnr": pictures.psnr(),
        "psnr.mean_image": pictures.mean_image_psnr(),
        "rate.nats": latents.rate(),
        "active_units": float(active.sum()),
        "bits_per_dim": float(objective.bits_per_dim(torch.tensor(nll), torch.tensor(latents.rate()))),
        "loss.total": loss,
        "loss.nll": nll,
        **{f"loss.{name}": term for name, term in zip(objective.terms, terms, strict=True)},
    }
    return ValidationResult(values, latents.kl_per_unit().tolist(), active.tolist())
