"""KL weights of other trainers, and the beta that does the same here.

Others fix the decoder's noise by how they reduce their losses; here it is calibrated. A weight in their convention
draws a water level through the spectrum of the images, below which a component is not worth its nats
(core/linear_gaussian.py). The calibrated beta with the same level has the same optimum, in linear theory.

| convention | loss | found in |
|---|---|---|
| `nats` | this project's (docs/objective.md) | here |
| `sum_sum` | sum of squares + w * sum of KL | diffusers' train_autoencoderkl (1e-6), PyTorch's example with squares |
| `half_sum_sum` | half the sum of squares + w * sum of KL | a unit-variance Gaussian decoder; pythae |
| `mean_sum` | mean of squares + w * sum of KL | PyTorch-VAE (2.5e-4) |
| `mean_mean` | mean of squares + w * mean of KL over the latents | scripts that average everything |
| `l1_sum` | sum of absolute errors + w * sum of KL | latent-diffusion (1e-6) |
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from unified_vae.config.loss import KLReduction
from unified_vae.core.linear_gaussian import LinearVAE, Spectrum, at_level

ABSOLUTE_PER_SIGMA = math.sqrt(2 / math.pi)  # mean absolute error of a normal error of standard deviation 1
ROUNDS = 200


def equivalent(
    convention: KLReduction, weight: float, eigenvalues: Spectrum, rest: float, dimensions: int, latents: int
) -> LinearVAE:
    """The linear VAE that a weight in another convention leads to; its `beta` is the calibrated one.

    Args:
        convention: any but `nats`.
        weight: of the KL, as the other trainer writes it.
        eigenvalues: the largest of the images' spectrum, descending: as many as there are latents, or fewer.
        rest: variance beyond them.
        dimensions: D, pixel values per image.
        latents: of the model.
    """
    if convention == "l1_sum":
        return _absolute(weight, eigenvalues, rest, dimensions)
    per_square: dict[str, float] = {  # the loss divided by this weighs a square by 1 and a nat by 2 * level
        "sum_sum": 0.5,
        "half_sum_sum": 1.0,
        "mean_sum": 0.5 * dimensions,
        "mean_mean": 0.5 * dimensions / latents,
    }
    return at_level(eigenvalues, rest, dimensions, per_square[convention] * weight)


def _absolute(weight: float, eigenvalues: Spectrum, rest: float, dimensions: int) -> LinearVAE:
    """Absolute errors weigh a square by 1 / (2 * size of the error): the level follows the error it leads to."""

    def leads_to(sigma: float) -> LinearVAE:
        return at_level(eigenvalues, rest, dimensions, weight * sigma / ABSOLUTE_PER_SIGMA)

    everything = float(eigenvalues.sum()) + rest
    return leads_to(_fixed_point(lambda sigma: leads_to(sigma).sigma, math.sqrt(everything / dimensions)))


def _fixed_point(step: Callable[[float], float], start: float) -> float:
    """Where `step`, which rises with its argument, stands still; approached from above."""
    value = start
    for _ in range(ROUNDS):
        following = step(value)
        if np.isclose(following, value, rtol=1e-9):
            break
        value = following
    return value
