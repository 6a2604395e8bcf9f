"""A KL weight in another convention, against the optimum of that very loss found by brute force."""

import numpy as np
import pytest

from unified_vae.core.linear_gaussian import optimum
from unified_vae.losses.convention import ABSOLUTE_PER_SIGMA, equivalent

SPECTRUM = np.array([30.0, 12.0, 5.0, 2.0, 0.8, 0.2])
REST, DIMENSIONS = 3.0, 200
LATENTS = len(SPECTRUM)

# loss of (sum of squared errors, sum of KL), as the other trainers write it
LOSSES = {
    "sum_sum": lambda squares, kl, weight: squares + weight * kl,
    "half_sum_sum": lambda squares, kl, weight: 0.5 * squares + weight * kl,
    "mean_sum": lambda squares, kl, weight: squares / DIMENSIONS + weight * kl,
    "mean_mean": lambda squares, kl, weight: squares / DIMENSIONS + weight * kl / LATENTS,
    "l1_sum": lambda squares, kl, weight: DIMENSIONS * ABSOLUTE_PER_SIGMA * np.sqrt(squares / DIMENSIONS) + weight * kl,
}


def loss(convention, weight, logs):
    squares = REST + (SPECTRUM * np.exp(logs)).sum()
    return LOSSES[convention](squares, -0.5 * logs.sum(), weight)


@pytest.mark.parametrize("convention", LOSSES)
@pytest.mark.parametrize("level", [0.1, 1.5, 8.0])
def test_it_is_the_optimum_of_that_loss(convention, level):
    weight = {"sum_sum": 2, "half_sum_sum": 1, "mean_sum": 2 / DIMENSIONS, "mean_mean": 2 * LATENTS / DIMENSIONS}.get(
        convention, 3
    ) * level
    found = equivalent(convention, weight, SPECTRUM, REST, DIMENSIONS, len(SPECTRUM))
    logs = np.log(found.posterior_variances)
    best = loss(convention, weight, logs)
    rng = np.random.default_rng(0)
    for _ in range(300):
        other = np.minimum(logs + rng.normal(0, 0.1, LATENTS), 0.0)
        assert loss(convention, weight, other) >= best - 1e-9


@pytest.mark.parametrize("convention", LOSSES)
def test_the_calibrated_beta_leads_to_the_same_optimum(convention):
    weight = 0.01 if convention.startswith("mean") else 2.0
    found = equivalent(convention, weight, SPECTRUM, REST, DIMENSIONS, len(SPECTRUM))
    here = optimum(SPECTRUM, REST, DIMENSIONS, found.beta)
    assert here.active_units == found.active_units > 0
    assert here.rate == pytest.approx(found.rate, rel=1e-6)
    assert here.psnr == pytest.approx(found.psnr, rel=1e-6)


def test_the_mean_of_squares_at_beta_one_collapses():
    """What the objective of many scripts does (docs/objective.md, "Why not")."""
    assert equivalent("mean_sum", 1.0, SPECTRUM, REST, DIMENSIONS, len(SPECTRUM)).active_units == 0


def test_a_mean_over_the_latents_is_over_all_of_them_also_where_the_images_have_fewer_components():
    latents, weight = 3 * LATENTS, 0.5
    found = equivalent("mean_mean", weight, SPECTRUM, REST, DIMENSIONS, latents)
    same = equivalent("mean_sum", weight / latents, SPECTRUM, REST, DIMENSIONS, latents)
    assert found.beta == pytest.approx(same.beta) and found.rate == pytest.approx(same.rate)
