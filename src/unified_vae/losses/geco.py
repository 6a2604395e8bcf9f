"""GECO: beta as the price of a reconstruction that is good enough (Rezende & Viola 2018, arXiv 1810.00597)."""

from __future__ import annotations

import torch
from torch import Tensor

from unified_vae.config.loss import Geco

NEAR = 2.0  # times the target, 3 dB: below this the error counts as near it


def next_multiplier(
    geco: Geco, weight: float, multiplier: Tensor, error: Tensor, before: Tensor, after: Tensor
) -> Tensor:
    """What beta is to be multiplied by in the next step: beta falls while the error is above its target.

        beta <- clip(beta * (before / after) * (target / error)^speed, min_beta, max_beta)

    The second factor is the paper's: steps in log(beta), here by the log of the violated ratio, so that a decibel
    too much and one too little weigh the same. The first keeps beta * scale: the distortion is divided by its
    running mean, so that a smaller error alone would already make it dearer, and an error that lowers its own
    price runs away. It acts near the target only, so that the fall of the error at the start of training does not
    raise beta.

    Args:
        weight: beta before any adaptation, `loss.kl.weight`.
        multiplier: scalar, of this step.
        error: scalar, the step's mean squared error, above 0.
        before: scalar, running mean of the squared error in this step.
        after: scalar, the same with this step's error folded in.

    Returns:
        Scalar on the device of `multiplier`; nothing here waits for the device.
    """
    change = geco.speed * torch.log(geco.target / error)
    near = NEAR * geco.target
    kept = torch.log(before.clamp(max=near) / after.clamp(max=near))
    return (multiplier * torch.exp(kept + change)).clamp(geco.min_beta / weight, geco.max_beta / weight)
