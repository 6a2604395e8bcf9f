"""Constraints on the rate: what beta multiplies instead of the plain KL, or how beta finds itself. No torch here.

`kl.py` computes the first two, `geco.py` moves beta for the third; docs/objective.md says when to use which.
"""

from __future__ import annotations

from unified_vae.config.loss import Capacity, FreeBits, Geco, RateConstraint


def capacity_at(capacity: Capacity, progress: float) -> float:
    """C in nats an image at `progress`, the part of the run that is done."""
    part = min(max(progress, 0.0) / capacity.warmup, 1.0)
    return capacity.initial_capacity + (capacity.capacity - capacity.initial_capacity) * part


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
