"""Latent densities: each kind finds what it is made for, `auto` never does worse than N(0, I), few images are said."""

from __future__ import annotations

import math

import pytest
import torch

from unified_vae.analysis.density import choose, fit_density, fit_kinds
from unified_vae.config.model import DensityConfig
from unified_vae.core.distributions import DiagonalGaussian
from unified_vae.models.density import NormalDensity, fit_gaussian, read_density, write_density

AUTO = DensityConfig(max_components=4)


def exactly(means: torch.Tensor, std: float = 0.05) -> DiagonalGaussian:
    return DiagonalGaussian(means, torch.full_like(means, 2 * math.log(std)))


def correlated(count: int = 2000) -> torch.Tensor:
    mix = torch.tensor([[1.0, 0, 0, 0], [0.8, 0.5, 0, 0], [0, 0, 2.0, 0], [0, 0.3, 0, 0.2]])
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(0)) @ mix.T + torch.tensor([1.0, 0, -1, 0])


def blobs(count: int = 1200) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    centres = torch.tensor([[3.0, 0, 0, 0], [-3.0, 0, 0, 0], [0, 4.0, 0, 0]])
    return centres[torch.arange(count) % 3] + 0.3 * torch.randn(count, 4, generator=generator)


def test_a_gaussian_finds_mean_and_covariance() -> None:
    means = correlated()
    density = fit_gaussian(exactly(means))
    draws = density.sample(20_000, torch.Generator().manual_seed(3))
    torch.testing.assert_close(draws.mean(0), means.mean(0), atol=0.05, rtol=0)
    torch.testing.assert_close(draws.T.cov(), means.T.cov(), atol=0.15, rtol=0.05)


def test_a_mixture_is_chosen_for_blobs() -> None:
    candidates = fit_kinds(exactly(blobs()), AUTO, seed=0)
    assert candidates["mixture"].nats() > candidates["gaussian"].nats() + 1
    assert choose(candidates) == "mixture"


def test_mirror_images_are_as_likely_and_count_as_their_images() -> None:
    """A second view of each image, mirrored here in the first latent, which its images show on one side alone."""
    means = correlated(600)
    means[:, 0] = means[:, 0].abs()
    both = exactly(torch.cat([means, means * torch.tensor([-1.0, 1, 1, 1])]), 0.5)
    fitted = fit_density(both, AUTO, seed=0, views=2)
    draws = fitted.density.sample(4000, torch.Generator().manual_seed(5))
    assert fitted.images == 600
    assert abs(float((draws[:, 0] > 0).float().mean()) - 0.5) < 0.05


def test_progress_counts_the_fits() -> None:
    seen: list[tuple[int, int | None]] = []
    quick = DensityConfig(max_components=1)
    fit_density(exactly(blobs(100)), quick, 0, lambda _, done, total: seen.append((done, total)))
    assert [done for done, total in seen if total == 3] == [0, 1, 2, 3]


@pytest.mark.parametrize("means", [correlated(400), blobs(400), torch.randn(400, 4)])
def test_auto_is_never_less_likely_than_the_prior(means: torch.Tensor) -> None:
    fitted = fit_density(exactly(means, 0.5), AUTO, seed=0)
    assert fitted.nats[fitted.density.kind] >= fitted.nats["normal"]


@pytest.mark.parametrize("kind", ["normal", "gaussian", "mixture"])
def test_a_density_survives_its_file_and_draws_the_same_again(kind: str, tmp_path) -> None:
    fitted = fit_density(exactly(blobs(300)), DensityConfig(fit=kind, max_components=2), seed=0).density
    again = read_density(tmp_path, write_density(tmp_path, fitted))
    first, second = (density.sample(5, torch.Generator().manual_seed(4)) for density in (fitted, again))
    assert torch.equal(first, second)
    assert torch.equal(again.log_prob(first), fitted.log_prob(first))
    still = fitted.sample(3, torch.Generator().manual_seed(4), temperature=0.0)
    assert torch.equal(still[0], still[1]) and bool(torch.isfinite(still).all())


def test_the_fit_depends_on_the_seed_alone() -> None:
    before = torch.random.get_rng_state()
    first, again = (fit_density(exactly(blobs(300)), AUTO, seed=5).density for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize("count", [1, 2, 9])
def test_few_images_are_said(count: int) -> None:
    fitted = fit_density(exactly(torch.randn(count, 4)), DensityConfig(fit="auto"), seed=0)
    assert isinstance(fitted.density, NormalDensity) and "too few" in fitted.note
    gaussian = fit_density(exactly(torch.randn(count, 4)), DensityConfig(fit="gaussian"), seed=0)
    assert bool(torch.isfinite(gaussian.density.sample(4, torch.Generator().manual_seed(0))).all())


def test_posteriors_with_nan_are_refused() -> None:
    with pytest.raises(ArithmeticError):
        fit_density(exactly(torch.full((20, 4), float("nan"))), AUTO, seed=0)
