"""The rate: how many nats the latents tell about an image, beyond the prior N(0, I)."""

from __future__ import annotations

from torch import Tensor

from unified_vae.core.posterior import DiagonalGaussian
from unified_vae.losses.constraint import Capacity, FreeBits, RateConstraint, capacity_at


def rate(posterior: DiagonalGaussian) -> Tensor:
    """KL(q(z|x) || N(0, I)) summed over latents: [batch], nats per image, float32."""
    return posterior.kl_per_unit().float().sum(1)


def priced_rate(posterior: DiagonalGaussian, constraint: RateConstraint, progress: float) -> Tensor:
    """What beta multiplies: the mean rate of the batch, or what a constraint makes of it. Scalar, nats per image.

    The mean is that of the micro-batch on this device. Free bits and capacity bend at a mean, so pieces of a batch
    add up to the whole only where all lie on the same side of the bend (else to a little more, by convexity).
    """
    match constraint:
        case FreeBits(nats_per_unit=nats):
            return posterior.kl_per_unit().float().mean(0).clamp(min=nats).sum()
        case Capacity():
            return (rate(posterior).mean() - capacity_at(constraint, progress)).abs()
        case _:
            return rate(posterior).mean()
