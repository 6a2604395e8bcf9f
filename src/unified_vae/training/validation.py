"""One pass over the validation set with the averaged weights: metrics that no loss weight or warm-up changes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from unified_vae.config.loss import LIKELIHOOD_METRICS
from unified_vae.core.distributions import VAEOutput
from unified_vae.core.events import Observer
from unified_vae.data.batches import validation_batches
from unified_vae.data.dataset import PackedSplit
from unified_vae.losses.objective import Objective
from unified_vae.metrics.images import ReconstructionSums, SpectrumSums
from unified_vae.metrics.latents import LatentSums
from unified_vae.models.vae import VAE
from unified_vae.training.distributed import Runtime
from unified_vae.training.memory import MicroBatches
from unified_vae.training.state import TrainState
from unified_vae.training.train_step import VAEStep, to_unit_range


@dataclass(frozen=True)
class ValidationResult:
    """Attributes:
    values: `psnr`, `psnr.mean_image` (dB), `sharpness`, `rate.nats`, `active_units`, `posterior.gap`,
        `distortion.nats`, ... and each term; of MSE or L1 alone also `loss.nll` and `bits_per_dim`. Images are decoded
        from the means of their posteriors, so these lack the noise of the draw (evaluate has it).
    kl_per_unit: [latents], nats.
    active: [latents], whether each unit is active.
    """

    values: dict[str, float]
    kl_per_unit: list[float]
    active: list[bool]


@dataclass
class MetricSums:
    """The sums of one pass: everything that needs no objective."""

    images: ReconstructionSums
    spectrum: SpectrumSums
    latents: LatentSums

    @classmethod
    def empty(cls, model: VAE, device: torch.device, dtype: torch.dtype) -> MetricSums:
        """Sums over no image."""
        return cls(
            ReconstructionSums.empty(model.channels, model.image_size, device, dtype),
            SpectrumSums.empty(model.image_size, device, dtype),
            LatentSums.empty(model.latents, device, dtype),
        )

    def add(self, output: VAEOutput, images: Tensor) -> None:
        """Count a batch and what the model made of it."""
        self.images.add(output.reconstruction, images)
        self.spectrum.add(output.reconstruction, images)
        self.latents.add(output.posterior)

    def tensors(self) -> list[Tensor]:
        """The sums, for adding them up over devices in place."""
        parts = (self.images, self.spectrum, self.latents)
        return [tensor for part in parts for tensor in part.tensors()]

    def values(self) -> dict[str, float]:
        """The figures by their names in the metrics file."""
        rate, gap = self.latents.rate(), self.latents.gap()
        return {
            "psnr": self.images.psnr(),
            "psnr.mean_image": self.images.mean_image_psnr(),
            "sharpness": self.spectrum.sharpness(),
            "rate.nats": rate,
            "active_units": float(self.latents.active().sum()),
            "posterior.gap": gap,
            "posterior.information": rate - gap,
        }


def reconstruct_batches(model: VAE, batches: Iterable[Tensor], runtime: Runtime) -> Iterator[tuple[VAEOutput, Tensor]]:
    """Each batch decoded from the means of its posteriors, and its images in [0, 1], on the device.

    Args:
        model: evaluated as it is; its train/eval mode is put back afterwards.
        batches: this rank's images, uint8 [batch, channels, size, size].
    """
    was_training = model.training
    model.eval()
    try:
        for raw in batches:
            images = to_unit_range(raw.to(runtime.device), runtime.memory_format)
            with torch.no_grad(), runtime.autocast():
                output = model(images)
            yield output, images
    finally:
        model.train(was_training)


@torch.no_grad()
def validate(
    model: VAE,
    objective: Objective,
    split: PackedSplit,
    batch_size: int,
    micro_batches: MicroBatches,
    progress: float,
    pca_psnr: float | None = None,
) -> ValidationResult:
    """Reconstruct every image of a split from the mean of its posterior; every rank takes its share.

    Args:
        model: evaluated as it is; its train/eval mode is put back afterwards.
        objective: the one that trains, its calibrated scale left alone.
        batch_size: images at once where memory suffices; on out-of-memory the pass begins anew with smaller batches.
        progress: part of the run that is done, for the weights in `loss.total`.
        pca_psnr: dB of as many principal components as there are latents, where that is known.
    """
    runtime = micro_batches.runtime

    def local_sums(num_micro_batches: int) -> tuple[MetricSums, Tensor]:
        sums = MetricSums.empty(model, runtime.device, runtime.accumulation_dtype)
        losses = torch.zeros(1 + len(objective.terms), device=runtime.device, dtype=runtime.accumulation_dtype)
        size = math.ceil(batch_size / num_micro_batches)
        batches = validation_batches(split, batch_size=size, rank=runtime.rank, world_size=runtime.world_size)
        for output, images in reconstruct_batches(model, batches, runtime):
            value = objective(output, images, progress)
            terms = [value.terms[name] for name in objective.terms]
            losses += len(images) * torch.stack([value.nll, *terms]).to(losses)
            sums.add(output, images)
        return sums, losses

    sums, losses = micro_batches.run_with_oom_retry(batch_size, local_sums)
    runtime.all_reduce_sum_([losses, *sums.tensors()])
    means = losses / sums.images.images
    nll, *terms = means.tolist()
    loss = objective.loss_from_means(means[0], sums.latents.kl_per_unit().to(means), progress).item()
    values = sums.values()
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
    return ValidationResult(values, sums.latents.kl_per_unit().tolist(), sums.latents.active().tolist())


class VAEValidator:
    """Validates the averaged weights of a `VAEStep`, in smaller batches than training where memory asks for that.

    Args:
        split: the validation images.
        batch_size: images of a training step on this rank.
        pca_psnr: see `validate`.
    """

    def __init__(
        self, train_step: VAEStep, split: PackedSplit, batch_size: int, observer: Observer, pca_psnr: float | None
    ) -> None:
        self.train_step = train_step
        self.split = split
        self.batch_size = batch_size
        self.observer = observer
        self.pca_psnr = pca_psnr

    def __call__(self, state: TrainState) -> ValidationResult:
        """Validate; on out-of-memory the smaller batches are kept in `state`."""
        step = self.train_step
        size = math.ceil(self.batch_size / step.micro_batches.count)
        micro_batches = MicroBatches(step.runtime, state.validation_micro_batches)
        progress = state.step / step.total_steps
        result = validate(step.ema.model, step.objective, self.split, size, micro_batches, progress, self.pca_psnr)
        if micro_batches.count != state.validation_micro_batches:
            state.validation_micro_batches = micro_batches.count
            at_once = math.ceil(size / micro_batches.count)
            self.observer.notice(f"out of memory while validating: from now on {at_once} images at once")
        return result


def in_bits(rate: float, nll: float, dimensions: int) -> dict[str, float]:
    """Rate and distortion of an image: the point of a run on the plane of Alemi et al. 2018 (arXiv 1711.00464)."""
    per_dim = dimensions * math.log(2)
    return {
        "rate.bits_per_dim": rate / per_dim,
        "distortion.nats": nll,
        "distortion.bits_per_dim": nll / per_dim + 8,  # of pixels rounded to 8 bits
    }
