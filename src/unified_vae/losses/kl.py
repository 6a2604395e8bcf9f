"""The rate: how many nats the latents tell about an image, beyond the prior N(0, I)."""

from __future__ import annotations

import torch
from torch import Tensor

from unified_vae.config.loss import Capacity, FreeBits, RateConstraint
from unified_vae.core.posterior import DiagonalGaussian
from unified_vae.losses.constraint import capacity_at


def rate(posterior: DiagonalGaussian) -> Tensor:
    """KL(q(z|x) || N(0, I)) summed over latents: [batch], nats per image, float32."""
    return posterior.kl_per_unit().float().sum(1)


def priced_rate(kl: Tensor, constraint: RateConstraint, progress: float, whole: Tensor | None = None) -> Tensor:
    """What beta multiplies: the mean rate of the batch, or what a constraint makes of it. Scalar, nats per image.

    Free bits and capacity bend at the mean over the whole batch. For a piece of it the bend is taken as a line with the
    slope at that mean, so that the pieces' values and gradients, weighed by their sizes, add up to those of the batch.

    Args:
        kl: [batch, latents], of each unit of each image, `posterior.kl_per_unit()`.
        whole: [latents], mean KL of each unit over the whole batch that `kl` is a piece of; None where it is the
            whole batch itself.
    """
    match constraint:
        case FreeBits(nats_per_unit=nats):
            mean = kl.mean(0)
            above = (mean if whole is None else whole).detach() >= nats
            return torch.where(above, mean, nats).sum()
        case Capacity():
            mean = kl.sum(1).mean()
            target = capacity_at(constraint, progress)
            side = torch.sign((mean if whole is None else whole.sum()).detach() - target)
            return side * (mean - target)
        case _:
            return kl.sum(1).mean()


def priced_mean(kl: Tensor, constraint: RateConstraint, progress: float) -> Tensor:
    """`priced_rate` of a whole set, from the mean KL of each unit, [latents]. Scalar, nats per image."""
    match constraint:
        case FreeBits(nats_per_unit=nats):
            return kl.clamp(min=nats).sum()
        case Capacity():
            return (kl.sum() - capacity_at(constraint, progress)).abs()
        case _:
            return kl.sum()
