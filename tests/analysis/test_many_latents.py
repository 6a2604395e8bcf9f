"""Thousands of latents: nothing looks at all pairs of them, and what is fitted instead is right."""

import math

import pytest
import torch

from unified_vae.analysis import density as analysis
from unified_vae.analysis.density import fit_density
from unified_vae.config.model import DensityConfig
from unified_vae.core.distributions import MOST_CORRELATED, DiagonalGaussian
from unified_vae.core.errors import DataError
from unified_vae.metrics.latents import LatentSums
from unified_vae.models.density import UnitsDensity, fit_simple, fit_units, read_density, write_density

MANY = MOST_CORRELATED + 1


def posteriors(images=60, latents=MANY, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scale = torch.linspace(0.2, 3.0, latents)
    means = 1.0 + scale * torch.randn(images, latents, generator=generator)
    return DiagonalGaussian(means, torch.full_like(means, math.log(0.04)))


def no_pairs(*_):
    raise AssertionError("all pairs of the latents were looked at")


def test_auto_chooses_between_the_prior_and_the_units(monkeypatch):
    monkeypatch.setattr(analysis, "fit_gaussian", no_pairs)
    fitted = fit_density(posteriors(), DensityConfig(), seed=0)
    assert set(fitted.nats) == {"normal", "units"} and fitted.density.kind == "units"
    assert fit_simple(posteriors()).kind == "units"


@pytest.mark.parametrize("kind", ["gaussian", "mixture"])
def test_other_kinds_are_refused_with_what_to_do(kind):
    with pytest.raises(DataError, match=r"at most 2,048\): set density\.fit=auto"):
        fit_density(posteriors(), DensityConfig(fit=kind), seed=0)


def test_units_have_the_moments_of_the_fitted_latents(tmp_path):
    given = posteriors(images=4000, latents=6)
    density = fit_units(given)
    scale = torch.linspace(0.2, 3.0, 6)
    torch.testing.assert_close(density.mean, torch.ones(6), rtol=0, atol=0.2)
    torch.testing.assert_close(density.std, (scale.square() + 0.04).sqrt(), rtol=0.05, atol=0)
    latents = torch.randn(5, 6)
    reference = torch.distributions.Normal(density.mean, density.std).log_prob(latents).sum(1)
    torch.testing.assert_close(density.log_prob(latents), reference)
    draws = density.sample(4000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(draws.std(0), density.std, rtol=0.05, atol=0)
    again = read_density(tmp_path, write_density(tmp_path, density))
    assert isinstance(again, UnitsDensity) and torch.equal(again.std, density.std)


def test_units_may_be_asked_for_where_there_are_few_latents():
    fitted = fit_density(posteriors(latents=4), DensityConfig(fit="units"), seed=0)
    assert fitted.density.kind == "units" and set(fitted.nats) == {"normal", "units"}


def test_the_gap_of_many_units_is_the_sum_of_their_own():
    few, many = (LatentSums.empty(count, torch.device("cpu"), torch.float64) for count in (1, MANY))
    column = posteriors(latents=1)
    few.add(column)
    many.add(DiagonalGaussian(column.mean.expand(-1, MANY), column.logvar.expand(-1, MANY)))
    assert many.outer.shape == (MANY,)
    assert many.gap() == pytest.approx(MANY * few.gap(), rel=1e-6)
