"""KL term: information in the latents, in nats per image, with its constraints (free bits, capacity, GECO)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from unified_vae.config.loss import Capacity, FreeBits, Geco, KLReduction, RateConstraint
from unified_vae.core.distributions import DiagonalGaussian
from unified_vae.core.linear_vae import LinearVAE, Spectrum, at_level

GECO_NEAR = 2.0  # times the target, 3 dB: an error below this counts as near the target
L1_PER_SIGMA = math.sqrt(2 / math.pi)  # mean absolute error of a normal error of standard deviation 1


def kl_per_image(posterior: DiagonalGaussian) -> Tensor:
    """Return KL(q(z|x) || N(0, I)) summed over latents: [batch], nats per image, float32."""
    return posterior.kl_per_unit().float().sum(1)


def capacity_at(capacity: Capacity, progress: float) -> float:
    """Return C in nats per image at `progress`, the fraction of the run that is done."""
    part = min(max(progress, 0.0) / capacity.warmup, 1.0)
    return capacity.initial_capacity + (capacity.capacity - capacity.initial_capacity) * part


def constrained_kl(
    kl: Tensor, constraint: RateConstraint, progress: float, batch_mean_kl: Tensor | None = None
) -> Tensor:
    """Return what beta multiplies: the mean KL of the batch, or its value under a constraint. Scalar, nats per image.

    Free bits and capacity have a kink at the mean over the whole batch. For a micro-batch they are replaced by a line
    with the slope at that mean, so that the values and gradients of micro-batches, weighted by their sizes, add up to
    those of the batch.

    Args:
        kl: [batch, latents], of each unit of each image, `posterior.kl_per_unit()`; or one row of means over a set.
        constraint: none, free bits, capacity; GECO changes beta instead (`geco_multiplier`).
        progress: fraction of the run that is done.
        batch_mean_kl: [latents], mean KL of each unit over the whole batch, where `kl` is a micro-batch; None where
            it is the whole batch.
    """
    match constraint:
        case FreeBits(nats_per_unit=nats):
            mean = kl.mean(0)
            above = (mean if batch_mean_kl is None else batch_mean_kl).detach() >= nats
            return torch.where(above, mean, nats).sum()
        case Capacity():
            mean = kl.sum(1).mean()
            target = capacity_at(constraint, progress)
            side = torch.sign((mean if batch_mean_kl is None else batch_mean_kl.sum()).detach() - target)
            return side * (mean - target)
        case _:
            return kl.sum(1).mean()


def geco_multiplier(
    geco: Geco, weight: float, multiplier: Tensor, error: Tensor, mean_before: Tensor, mean_after: Tensor
) -> Tensor:
    """Return the factor of beta in the next step: beta falls while the error is above its target.

        beta <- clip(beta * (mean_before / mean_after) * (target / error)^speed, min_beta, max_beta)

    The last factor is that of Rezende & Viola 2018, arXiv 1810.00597: steps in log(beta), here by the log of the
    violated ratio, so that a decibel too much and one too little count the same. The ratio of means keeps beta * scale:
    the distortion is divided by its running mean, so a smaller error alone would already make it weigh more, and
    the error would run away. It acts near the target only, so that the fall of the error at the start of training
    does not raise beta.

    Args:
        geco: target, speed and bounds.
        weight: beta before any adaptation, `loss.kl.weight`.
        multiplier: scalar, of this step.
        error: scalar, the step's mean squared error, above 0.
        mean_before: scalar, running mean of the squared error in this step.
        mean_after: scalar, the same with this step's error included.

    Returns:
        Scalar on the device of `multiplier`; nothing here waits for the device.
    """
    change = geco.speed * torch.log(geco.target / error)
    near = GECO_NEAR * geco.target
    kept = torch.log(mean_before.clamp(max=near) / mean_after.clamp(max=near))
    return (multiplier * torch.exp(kept + change)).clamp(geco.min_beta / weight, geco.max_beta / weight)


def describe_constraint(constraint: RateConstraint, progress: float) -> str:
    """Describe the constraint in a few words, for the table shown at start and on resume; empty without one."""
    match constraint:
        case FreeBits(nats_per_unit=nats):
            return f"free bits: no unit is pushed below {nats:g} nats"
        case Capacity(capacity=nats, initial_capacity=start, warmup=warmup):
            now = capacity_at(constraint, progress)
            return (
                f"capacity: KL held at {start:g} nats, growing to {nats:g} over the first {warmup:.0%} of the run, "
                f"now {now:.4g}"
            )
        case Geco(psnr=psnr):
            return f"geco: at least {psnr:g} dB at the least KL"
        case _:
            return ""


def equivalent_linear_vae(
    reduction: KLReduction, weight: float, eigenvalues: Spectrum, rest: float, dimensions: int, latents: int
) -> LinearVAE:
    """Return the linear VAE that a KL weight of another trainer leads to; its `beta` is the calibrated one.

    Others fix the decoder's noise by how they reduce their losses; here it is calibrated. A weight for their reduction
    sets a water level in the spectrum of the images, below which a component is not worth its nats
    (core/linear_vae.py). The calibrated beta with the same level has the same optimum, in linear theory.

    | reduction | loss | used by |
    |---|---|---|
    | `nats` | this project's (docs/objective.md) | here |
    | `sum_sum` | sum of squares + w * sum of KL | diffusers' train_autoencoderkl (1e-6), PyTorch's example |
    | `half_sum_sum` | half the sum of squares + w * sum of KL | a unit-variance Gaussian decoder; pythae |
    | `mean_sum` | mean of squares + w * sum of KL | PyTorch-VAE (2.5e-4) |
    | `mean_mean` | mean of squares + w * mean of KL over the latents | scripts that average everything |
    | `l1_sum` | sum of absolute errors + w * sum of KL | latent-diffusion (1e-6) |

    Args:
        reduction: any but `nats`.
        weight: of the KL, as the other trainer writes it.
        eigenvalues: the largest of the images' spectrum, descending: as many as there are latents, or fewer.
        rest: variance beyond them.
        dimensions: D, pixel values per image.
        latents: of the model.
    """
    if reduction != "l1_sum":
        per_square: dict[str, float] = {  # the loss divided by this weights a square by 1 and a nat by 2 * level
            "sum_sum": 0.5,
            "half_sum_sum": 1.0,
            "mean_sum": 0.5 * dimensions,
            "mean_mean": 0.5 * dimensions / latents,
        }
        return at_level(eigenvalues, rest, dimensions, per_square[reduction] * weight)

    # Absolute errors weight a square by 1 / (2 * size of the error), so the level follows the error that it leads to.
    # The error rises with the level: iterating from above, from the error of no latents, reaches the fixed point.
    sigma = math.sqrt((float(eigenvalues.sum()) + rest) / dimensions)
    for _ in range(200):
        following = at_level(eigenvalues, rest, dimensions, weight * sigma / L1_PER_SIGMA).sigma
        if np.isclose(following, sigma, rtol=1e-9):
            break
        sigma = following
    return at_level(eigenvalues, rest, dimensions, weight * sigma / L1_PER_SIGMA)
