"""One pass over the validation set: what the averaged weights do, in numbers that no weight or warm-up moves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from unified_vae.config.loss import LIKELIHOOD_METRICS
from unified_vae.core.vae_output import VAEOutput
from unified_vae.losses.objective import Objective
from unified_vae.metrics.aggregate import AggregateSums
from unified_vae.metrics.latent import LatentSums
from unified_vae.metrics.reconstruction import ReconstructionSums
from unified_vae.metrics.sharpness import SpectrumSums
from unified_vae.models.vae import VAE
from unified_vae.training.memory import MicroBatches
from unified_vae.training.runtime import Runtime
from unified_vae.training.step import in_unit_range


@dataclass(frozen=True)
class ValidationResult:
    """Attributes:
    values: `psnr`, `psnr.mean_image` (dB), `sharpness`, `rate.nats`, `active_units`, `posterior.gap`,
        `distortion.nats`, ... and each term; of MSE or L1 alone also `loss.nll` and `bits_per_dim`. Images are decoded
        from the means of their posteriors, so these lack the noise of the draw (metrics/likelihood.py has it).
    kl_per_unit: [latents], nats.
    active: [latents], whether each unit is active.
    """

    values: dict[str, float]
    kl_per_unit: list[float]
    active: list[bool]


@dataclass
class Measured:
    """The sums of one pass: everything that needs no objective."""

    pictures: ReconstructionSums
    spectrum: SpectrumSums
    latents: LatentSums
    aggregate: AggregateSums

    @classmethod
    def empty(cls, model: VAE, device: torch.device, dtype: torch.dtype) -> Measured:
        """Sums over no image."""
        return cls(
            ReconstructionSums.empty(model.channels, model.image_size, device, dtype),
            SpectrumSums.empty(model.image_size, device, dtype),
            LatentSums.empty(model.latents, device, dtype),
            AggregateSums.empty(model.latents, device, dtype),
        )

    def add(self, output: VAEOutput, images: Tensor) -> None:
        """Count a batch and what the model made of it."""
        self.pictures.add(output.reconstruction, images)
        self.spectrum.add(output.reconstruction, images)
        self.latents.add(output.posterior)
        self.aggregate.add(output.posterior)

    def tensors(self) -> list[Tensor]:
        """The sums, for adding them up over devices in place."""
        parts = (self.pictures, self.spectrum, self.latents, self.aggregate)
        return [tensor for part in parts for tensor in part.tensors()]

    def values(self) -> dict[str, float]:
        """The figures by their names in the metrics file."""
        rate, gap = self.latents.rate(), self.aggregate.gap()
        return {
            "psnr": self.pictures.psnr(),
            "psnr.mean_image": self.pictures.mean_image_psnr(),
            "sharpness": self.spectrum.sharpness(),
            "rate.nats": rate,
            "active_units": float(self.latents.active().sum()),
            "posterior.gap": gap,
            "posterior.information": rate - gap,
        }


def reconstructions(model: VAE, batches: Iterable[Tensor], runtime: Runtime) -> Iterator[tuple[VAEOutput, Tensor]]:
    """Each batch decoded from the means of its posteriors, and its images in [0, 1], on the device.

    Args:
        model: evaluated as it is; its train/eval mode is put back afterwards.
        batches: this rank's images, uint8 [batch, channels, size, size].
    """
    was_training = model.training
    model.eval()
    try:
        for raw in batches:
            images = in_unit_range(raw.to(runtime.device), runtime.layout)
            with torch.no_grad(), runtime.autocast():
                output = model(images)
            yield output, images
    finally:
        model.train(was_training)


@torch.no_grad()
def validate(
    model: VAE,
    objective: Objective,
    batches: Callable[[int], Iterable[Tensor]],
    batch_size: int,
    micro_batches: MicroBatches,
    progress: float,
    pca_psnr: float | None = None,
) -> ValidationResult:
    """Reconstruct every image from the mean of its posterior.

    Args:
        model: evaluated as it is; its train/eval mode is put back afterwards.
        objective: the one that trains, its calibrated scale left alone.
        batches: pieces -> this rank's images, uint8 [b, channels, size, size], b at most `batch_size / pieces`.
        batch_size: images at once where memory suffices.
        micro_batches: how many pieces; where memory does not suffice, the pass begins anew with more of them.
        progress: part of the run that is done, for the weights in `loss.total`.
        pca_psnr: dB of as many principal components as there are latents, where that is known.
    """
    runtime = micro_batches.runtime

    def own_images(pieces: int) -> tuple[Measured, Tensor]:
        return _measured(model, objective, batches(pieces), runtime, progress)

    measured, losses = micro_batches.fit(batch_size, own_images)
    runtime.sum_in_place([losses, *measured.tensors()])
    means = losses / measured.pictures.images
    nll, *terms = means.tolist()
    loss = objective.of_means(means[0], measured.latents.kl_per_unit().to(means), progress).item()
    values = measured.values()
    if pca_psnr is not None:
        values["psnr.above_pca"] = values["psnr"] - pca_psnr
    values |= {
        **in_bits(values["rate.nats"], nll, objective.dimensions),
        "bits_per_dim": float(objective.bits_per_dim(torch.tensor(nll), torch.tensor(values["rate.nats"]))),
        "loss.total": loss,
        "loss.nll": nll,
        **{f"loss.{name}": term for name, term in zip(objective.terms, terms, strict=True)},
    }
    if not objective.is_likelihood:
        values = {name: value for name, value in values.items() if name not in LIKELIHOOD_METRICS}
    return ValidationResult(values, measured.latents.kl_per_unit().tolist(), measured.latents.active().tolist())


def _measured(
    model: VAE, objective: Objective, batches: Iterable[Tensor], runtime: Runtime, progress: float
) -> tuple[Measured, Tensor]:
    """The sums over this rank's images: of everything measured, and of the NLL and each term."""
    device, dtype = runtime.device, runtime.sums_dtype
    measured = Measured.empty(model, device, dtype)
    losses = torch.zeros(1 + len(objective.terms), device=device, dtype=dtype)
    for output, images in reconstructions(model, batches, runtime):
        value = objective(output, images, progress)
        terms = [value.terms[name] for name in objective.terms]
        losses += len(images) * torch.stack([value.nll, *terms]).to(dtype)
        measured.add(output, images)
    return measured, losses


def in_bits(rate: float, nll: float, dimensions: int) -> dict[str, float]:
    """Rate and distortion of an image: the point of a run on the plane of Alemi et al. 2018 (arXiv 1711.00464)."""
    per_dim = dimensions * math.log(2)
    return {
        "rate.bits_per_dim": rate / per_dim,
        "distortion.nats": nll,
        "distortion.bits_per_dim": nll / per_dim + 8,  # of pixels rounded to 8 bits
    }
