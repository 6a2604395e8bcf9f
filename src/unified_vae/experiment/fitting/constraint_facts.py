"""What linear theory says of a constraint on the rate before the first step: its price, or that it cannot be met."""

from __future__ import annotations

import math

from unified_vae.experiment.diagnosis.preflight import Preflight, largest_beta_where
from unified_vae.losses.config import KLConfig
from unified_vae.losses.constraint import Capacity, Geco


def constraint_facts(flight: Preflight, kl: KLConfig) -> list[tuple[str, str]]:
    """What linear theory says about a constraint on the rate; empty where there is nothing to say."""
    match kl.constraint:
        case Capacity(nats=nats) if flight.planned_beta(kl) == kl.weight:
            there = flight.linear(kl.weight).rate
            words = f"beta {kl.weight:g} is too low to hold the KL at {nats:g} nats: linear theory expects {there:.0f}"
            return [("capacity", f"{words}. Give a higher --beta, ten times as much say")]
        case Geco() as geco:
            return [("geco", _geco_words(flight, geco))]
        case _:
            return []


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
