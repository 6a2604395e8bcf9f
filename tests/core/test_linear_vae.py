"""The closed form of the linear VAE against its definition: stationarity, accounting, limits."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unified_vae.core.linear_vae import SMALLEST_SIGMA, at_level, optimum

SPECTRUM = np.array([30.0, 12.0, 5.0, 2.0, 0.8, 0.2])
REST, DIMENSIONS = 3.0, 200


def objective(log_variances, beta, eigenvalues=SPECTRUM, rest=REST, dimensions=DIMENSIONS):
    """NLL + beta R of a linear VAE with calibrated noise and marginally optimal gains, up to a constant."""
    variances = np.exp(log_variances)
    error = rest + float((eigenvalues * variances).sum())
    return dimensions / 2 * math.log(error / dimensions) - beta / 2 * float(log_variances.sum())


@pytest.mark.parametrize("beta", [0.1, 1.0, 4.0, 20.0])
def test_no_other_posterior_variances_are_better(beta):
    vae = optimum(SPECTRUM, REST, DIMENSIONS, beta)
    logs = np.log(vae.posterior_variances)
    best = objective(logs, beta)
    rng = np.random.default_rng(0)
    for _ in range(300):
        other = np.minimum(logs + rng.normal(0, 0.2, len(logs)), 0.0)  # a variance above 1 only costs
        assert objective(other, beta) >= best - 1e-9


@given(st.floats(1e-3, 1e3))
def test_a_component_is_kept_iff_it_is_above_the_water(beta):
    vae = optimum(SPECTRUM, REST, DIMENSIONS, beta)
    level = beta * vae.sigma**2
    assert list(level * (1 + 1e-9) < SPECTRUM) == list(vae.posterior_variances < 1)
    assert vae.active_units == int((vae.posterior_variances < 1).sum())
    expected = -0.5 * np.log(vae.posterior_variances).sum()
    assert vae.rate == pytest.approx(expected)


def test_the_noise_is_the_error_of_decoded_draws():
    vae = optimum(SPECTRUM, REST, DIMENSIONS, 2.0)
    assert vae.sigma**2 * DIMENSIONS == pytest.approx(REST + float((SPECTRUM * vae.posterior_variances).sum()))


def test_encoding_and_decoding_keep_the_right_parts():
    """The aggregated posterior is N(0, 1) in each unit, and the mean of a component comes back scaled by 1 - s^2."""
    vae = optimum(SPECTRUM, REST, DIMENSIONS, 2.0)
    into, out = vae.encoder_gains(SPECTRUM), vae.decoder_gains(SPECTRUM)
    np.testing.assert_allclose(into**2 * SPECTRUM + vae.posterior_variances, 1.0)
    np.testing.assert_allclose(into * out, 1 - vae.posterior_variances)


def test_more_beta_never_raises_the_rate_or_the_psnr():
    optima = [optimum(SPECTRUM, REST, DIMENSIONS, beta) for beta in np.geomspace(1e-2, 1e3, 40)]
    assert all(a.rate >= b.rate - 1e-9 and a.psnr >= b.psnr - 1e-9 for a, b in pairwise(optima))
    assert optima[0].active_units == len(SPECTRUM) and optima[-1].active_units == 0


def test_beta_zero_keeps_everything_with_finite_numbers():
    vae = optimum(SPECTRUM, REST, DIMENSIONS, 0.0)
    assert vae.active_units == len(SPECTRUM)
    assert math.isfinite(vae.rate) and vae.psnr == pytest.approx(-10 * math.log10(REST / DIMENSIONS), abs=1e-6)


def test_a_set_of_equal_images_is_no_accident():
    vae = optimum(np.zeros(3), 0.0, 100, 2.0)
    assert (vae.active_units, vae.rate) == (0, 0.0)
    assert vae.sigma == SMALLEST_SIGMA and math.isfinite(vae.psnr)


@pytest.mark.parametrize("beta", [0.5, 2.0, 10.0])
def test_fixed_sigma_and_calibrated_beta_have_the_same_optimum(beta):
    calibrated = optimum(SPECTRUM, REST, DIMENSIONS, beta)
    fixed = at_level(SPECTRUM, REST, DIMENSIONS, beta * calibrated.sigma**2)
    assert fixed.beta == pytest.approx(beta)
    np.testing.assert_allclose(fixed.posterior_variances, calibrated.posterior_variances)
    assert (fixed.rate, fixed.psnr) == (pytest.approx(calibrated.rate), pytest.approx(calibrated.psnr))


def test_the_published_table_is_reproduced_in_its_form():
    """Rates fall by half a log(beta ratio) for each kept unit while none is lost (docs/objective.md)."""
    one, two = (optimum(SPECTRUM[:3], REST + SPECTRUM[3:].sum(), 5000, beta) for beta in (1.0, 2.0))
    assert one.active_units == two.active_units == 3
    assert one.rate - two.rate == pytest.approx(1.5 * math.log(2), rel=1e-2)


@given(st.floats(1e-3, 1e3), st.integers(1, 40))
def test_the_most_components_that_stand_are_kept(beta, repeats):
    """As a walk from all components down finds it; a map of latents repeats each variance at every position."""
    spectrum, dimensions = np.repeat(SPECTRUM, repeats), DIMENSIONS * repeats

    def stands(kept):
        lost = REST + float(spectrum[kept:].sum())
        if kept * beta >= dimensions:
            return False
        level = max(beta * lost / (dimensions - kept * beta), beta * SMALLEST_SIGMA**2)
        return kept == 0 or spectrum[kept - 1] > level

    expected = next(kept for kept in range(len(spectrum), -1, -1) if stands(kept))
    assert optimum(spectrum, REST, dimensions, beta).active_units == expected
