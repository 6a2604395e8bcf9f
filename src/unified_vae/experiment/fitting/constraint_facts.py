"""A constraint on the rate in words: at the start its price by linear theory, at the end whether it was met."""

from __future__ import annotations

import math

from unified_vae.config.loss import Capacity, Geco, KLConfig
from unified_vae.experiment.diagnosis.history import History
from unified_vae.experiment.diagnosis.preflight import Preflight, largest_beta_where

MISSED = 0.5  # dB from the target that GECO is told to have missed
ROUNDING = 1e-5  # of beta, which is logged as a product of numbers in fp32


def constraint_facts(flight: Preflight, kl: KLConfig) -> list[tuple[str, str]]:
    """What linear theory says about a constraint on the rate; empty where there is nothing to say."""
    match kl.constraint:
        case Capacity(capacity=nats) if flight.planned_beta(kl) == kl.weight:
            there = flight.linear(kl.weight).rate
            words = f"beta {kl.weight:g} is too low to hold the KL at {nats:g} nats: linear theory expects {there:.0f}"
            return [("capacity", f"{words}. Give a higher --beta, ten times as much say")]
        case Geco() as geco:
            return [("geco", _geco_words(flight, geco))]
        case _:
            return []


def missed(kl: KLConfig, history: History) -> list[str]:
    """What to say at the end of a run that did not come to the error it was asked for; empty where all is well.

    GECO looks at training images, decoded from drawn latents: the loss that the metrics file has of them.
    """
    if not isinstance(kl.constraint, Geco) or not history.training or history.beta is None:
        return []
    geco, reached = kl.constraint, history.training[-1][1]
    if abs(reached - geco.psnr) < MISSED:
        return []
    words = f"GECO did not settle: training images are at {reached:.1f} dB, {geco.psnr:g} were asked for"
    if history.beta <= geco.min_beta * (1 + ROUNDING):
        return [f"{words}, and beta is at its floor. Give more latents, train longer, or ask for less"]
    if history.beta >= geco.max_beta * (1 - ROUNDING):
        return [f"{words}, and beta is at its ceiling: --set loss.kl.constraint.max_beta={10 * geco.max_beta:g}"]
    speed = f"--set loss.kl.constraint.speed={min(1.0, 4 * geco.speed):g}"
    return [f"{words}, and beta ({history.beta:.3g}) is still on its way. Train longer, or let it move faster: {speed}"]


def _geco_words(flight: Preflight, geco: Geco) -> str:
    """Sigma squared is the error that GECO holds: that of training images, decoded from drawn latents."""
    best = flight.linear(geco.min_beta)
    if best.sigma**2 > geco.target:
        return (
            f"linear theory reaches {-20 * math.log10(best.sigma):.1f} dB with {flight.latents} latents: unless the "
            f"network adds the rest to {geco.psnr:g} dB, beta falls to {geco.min_beta:g} and the KL grows without "
            "need. Give more latents or a lower psnr"
        )
    beta = min(largest_beta_where(lambda beta: flight.linear(beta).sigma ** 2 <= geco.target), geco.max_beta)
    return f"linear theory meets {geco.psnr:g} dB at beta {beta:.3g}, with KL {flight.linear(beta).rate:.0f} nats"
