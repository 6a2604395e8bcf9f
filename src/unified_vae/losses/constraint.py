"""Constraints on the rate: what beta multiplies instead of the plain KL, or how beta finds itself. No torch here.

`kl.py` computes the first two, `geco.py` moves beta for the third; docs/objective.md says when to use which.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from unified_vae.core.config import Config


class Unconstrained(Config):
    """The plain rate, weighed by beta."""

    kind: Literal["none"] = "none"


class FreeBits(Config):
    """No unit is pushed below a few nats: sum_j max(mean KL_j, lambda) (Kingma et al. 2016, arXiv 1606.04934)."""

    kind: Literal["free_bits"] = "free_bits"
    nats_per_unit: float = Field(default=0.1, gt=0)
    """Lambda: what each latent unit may tell for free, on average over the images of a batch, in nats."""


class Capacity(Config):
    """The rate is held at a target C that grows: beta * |R - C| (Burgess et al. 2018, arXiv 1804.03599).

    Beta is how firmly: it has to be above the beta at which the rate would settle at C by itself.
    """

    kind: Literal["capacity"] = "capacity"
    nats: float = Field(default=200.0, ge=0)
    """C at the end of its growth, in nats an image."""
    start_nats: float = Field(default=0.0, ge=0)
    """C at the first step, in nats an image."""
    warmup: float = Field(default=0.5, gt=0, le=1)
    """Part of the run over which C grows (0.5 is the first half)."""

    @model_validator(mode="after")
    def _grows(self) -> Capacity:
        if self.start_nats > self.nats:
            raise ValueError(
                f"the capacity grows, and start_nats {self.start_nats:g} is above nats {self.nats:g}: swap them"
            )
        return self


class Geco(Config):
    """At least `psnr` dB at the least KL: beta is moved to meet the error (Rezende & Viola 2018, arXiv 1810.00597)."""

    kind: Literal["geco"] = "geco"
    psnr: float = Field(default=30.0, gt=0, le=58)
    """Target for the training images, decoded from drawn latents, in dB. Rounding to 8 bits alone leaves 58.9."""
    speed: float = Field(default=0.02, gt=0, le=1)
    """Change of log(beta) per optimizer step, for an error of e times the target."""
    min_beta: float = Field(default=0.01, gt=0)
    """Beta goes no lower, however large the error."""
    max_beta: float = Field(default=1000.0, gt=0)
    """Beta goes no higher, however small the error."""

    @model_validator(mode="after")
    def _leaves_room(self) -> Geco:
        if self.min_beta >= self.max_beta:
            raise ValueError(f"min_beta {self.min_beta:g} has to be below max_beta {self.max_beta:g}")
        return self

    @property
    def target(self) -> float:
        """The mean squared error of `psnr`, for pixels in [0, 1]."""
        return float(10 ** (-self.psnr / 10))


RateConstraint = Annotated[Unconstrained | FreeBits | Capacity | Geco, Field(discriminator="kind")]


def capacity_at(capacity: Capacity, progress: float) -> float:
    """C in nats an image at `progress`, the part of the run that is done."""
    part = min(max(progress, 0.0) / capacity.warmup, 1.0)
    return capacity.start_nats + (capacity.nats - capacity.start_nats) * part


def settled_at(constraint: RateConstraint) -> float:
    """The progress from which the constraint no longer moves what is minimised.

    GECO moves beta to the end. Before that its weights may be sharper, at a rate that it would still have lowered.
    """
    match constraint:
        case Capacity(warmup=warmup):
            return warmup
        case Geco():
            return 1.0
        case _:
            return 0.0


def describe(constraint: RateConstraint, progress: float) -> str:
    """The constraint in a few words, for the table shown at start and on resume; empty without one."""
    match constraint:
        case FreeBits(nats_per_unit=nats):
            return f"free bits: no unit is pushed below {nats:g} nats"
        case Capacity(nats=nats, start_nats=start, warmup=warmup):
            now = capacity_at(constraint, progress)
            return (
                f"capacity: KL held at {start:g} nats, growing to {nats:g} over the first {warmup:.0%} of the run, "
                f"now {now:.4g}"
            )
        case Geco(psnr=psnr):
            return f"geco: at least {psnr:g} dB at the least KL"
        case _:
            return ""
