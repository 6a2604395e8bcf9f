"""Latent densities as objects: draws that depend on the generator alone, exact likelihoods, temperature, files."""

from __future__ import annotations

import json
import math

import pytest
import torch

from unified_vae.config.model import ConvConfig
from unified_vae.core.checkpoint_format import write_tensors
from unified_vae.core.distributions import DiagonalGaussian
from unified_vae.core.errors import CheckpointError
from unified_vae.models.build import build_model
from unified_vae.models.density import (
    FILE_NAME,
    SHRINKAGES,
    GaussianDensity,
    LatentDensity,
    MixtureDensity,
    NormalDensity,
    best_shrinkage,
    fit_gaussian,
    fit_mixture,
    read_density,
)
from unified_vae.models.pretrained import load_pretrained, save_density, save_pretrained

LATENTS = 5
CONFIG = ConvConfig(image_size=16, latents=LATENTS, base_channels=4, channels=1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def two_blobs(count: int = 600, latents: int = LATENTS) -> DiagonalGaussian:
    side = 4.0 * (torch.arange(count) % 2)[:, None] - 2.0
    means = torch.cat([side, torch.randn(count, latents - 1, generator=generator(7))], dim=1)
    return DiagonalGaussian(means, torch.full_like(means, 2 * math.log(0.2)))


def densities(latents: int = LATENTS) -> list[LatentDensity]:
    blobs = two_blobs(latents=latents)
    gaussian = fit_gaussian(blobs)
    mixture = fit_mixture(gaussian, blobs, 2, 0.5, generator())
    return [NormalDensity(latents), gaussian, mixture]


@pytest.mark.parametrize("density", densities(), ids=lambda density: density.kind)
class TestEveryKind:
    def test_draws_follow_from_the_generator_in_whatever_portions(self, density: LatentDensity) -> None:
        whole, again = density.sample(7, generator(3)), density.sample(7, generator(3))
        assert torch.equal(whole, again) and whole.dtype == torch.float32 and whole.shape == (7, LATENTS)
        source = generator(3)
        portions = torch.cat([density.sample(count, source) for count in (1, 4, 2)])
        torch.testing.assert_close(portions, whole)
        assert not torch.equal(whole, density.sample(7, generator(4)))

    def test_the_global_generator_is_left_alone(self, density: LatentDensity) -> None:
        before = torch.random.get_rng_state()
        density.sample(3, generator())
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_temperature_scales_the_distance_from_the_mean(self, density: LatentDensity) -> None:
        still, half, full = (density.sample(4, generator(), temperature) for temperature in (0.0, 0.5, 1.0))
        assert torch.equal(still, density.mean.expand(4, -1))
        torch.testing.assert_close(half - density.mean, 0.5 * (full - density.mean))
        for wrong in (-1.0, math.inf, math.nan):
            with pytest.raises(ValueError, match="temperature"):
                density.sample(1, generator(), wrong)

    def test_the_model_s_folder_gives_it_back_bit_for_bit(self, density: LatentDensity, tmp_path) -> None:
        save_pretrained(tmp_path, CONFIG, build_model(CONFIG, seed=3).state_dict(), {})
        save_density(tmp_path, density, {"images": 600})
        model = load_pretrained(tmp_path)
        assert type(model.density) is type(density)
        assert torch.equal(model.density.sample(6, generator()), density.sample(6, generator()))
        latents = density.sample(6, generator(9))
        with torch.no_grad():
            assert torch.equal(model.density.log_prob(latents), density.log_prob(latents))
            assert torch.equal(
                model.sample(2, generator(), temperature=0.7), model.decode(density.sample(2, generator(), 0.7))
            )
        assert json.loads((tmp_path / "config.json").read_text())["density"]["images"] == 600
        assert model.state_dict().keys() == build_model(CONFIG).state_dict().keys()


@pytest.mark.parametrize("density", densities(latents=2), ids=lambda density: density.kind)
def test_the_likelihood_is_normalised_and_is_that_of_the_draws(density: LatentDensity) -> None:
    axis = torch.linspace(-8, 8, 401)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        mass = density.log_prob(grid).double().exp() * float(axis[1] - axis[0]) ** 2
    draws = density.sample(40_000, generator(5))
    inside = (draws.abs() < 8).all(1)
    assert inside.float().mean() > 0.9 and abs(float(mass.sum()) - float(inside.float().mean())) < 5e-3
    for corner in ((0.01, 0.01), (1.51, -0.49), (-1.99, 1.01)):  # between points of the grid
        below = float(mass[(grid < torch.tensor(corner)).all(1)].sum())
        drawn = float(((draws < torch.tensor(corner)).all(1) & inside).float().mean())
        assert abs(below - drawn) < 0.01


def test_the_gaussian_is_the_posteriors_own_mean_and_covariance() -> None:
    mix = torch.randn(LATENTS, LATENTS, generator=generator(1))
    means = torch.randn(3000, LATENTS, generator=generator(2)) @ mix.T + 3
    variances = torch.rand(3000, LATENTS, generator=generator(3)) + 0.1
    density = fit_gaussian(DiagonalGaussian(means, variances.log()))
    covariance = density.from_standard @ density.from_standard.T
    torch.testing.assert_close(density.mean, means.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(covariance, means.T.cov() + torch.diag(variances.mean(0)), rtol=0.02, atol=0.02)
    torch.testing.assert_close(density.to_standard @ density.from_standard, torch.eye(LATENTS), rtol=0, atol=1e-4)
    exact = torch.distributions.MultivariateNormal(density.mean.double(), covariance.double())
    torch.testing.assert_close(
        density.log_prob(means[:9]).double(), exact.log_prob(means[:9].double()), rtol=1e-3, atol=1e-3
    )


def test_standard_coordinates_are_sorted_by_variance() -> None:
    means = torch.zeros(500, LATENTS)
    means[:, 2] = 3 * torch.randn(500, generator=generator())
    density = fit_gaussian(DiagonalGaussian(means, torch.zeros_like(means)))
    assert density.to_standard[0].abs().argmax() == 2
    standard = density.standardize(means)
    assert standard[:, 0].var() > 0.8 and standard[:, 1:].abs().max() < 0.05


def test_few_images_are_shrunk_more_than_many() -> None:
    """Latents without correlations: few images show some by chance, which the shrinkage takes back."""
    wide = torch.randn(2000, 40, generator=generator(4))

    def shrinkage(count: int) -> float:
        return best_shrinkage(DiagonalGaussian(wide[:count], torch.full((count, 40), -6.0)))

    assert shrinkage(12) > 0 and shrinkage(12) >= shrinkage(2000)
    assert shrinkage(1) == 1.0 and set(SHRINKAGES) >= {shrinkage(12), shrinkage(2000)}


def test_unequal_units_do_not_break_the_gaussian() -> None:
    scales = torch.logspace(-6, 3, LATENTS)
    means = scales * torch.randn(200, LATENTS, generator=generator(5))
    density = fit_gaussian(DiagonalGaussian(means, (1e-6 * scales.square()).log().expand_as(means)))
    ratio = density.sample(5000, generator()).std(0) / means.std(0)
    torch.testing.assert_close(ratio, torch.ones(LATENTS), rtol=0.1, atol=0)


def test_a_mixture_has_both_blobs_and_nothing_between() -> None:
    blobs = two_blobs()
    gaussian = fit_gaussian(blobs)
    mixture = fit_mixture(gaussian, blobs, 2, 0.5, generator())
    for density, most in ((gaussian, 1.0), (mixture, 0.02)):
        draws = density.sample(4000, generator(1))[:, 0]
        between = float((draws.abs() < 1).float().mean())
        assert between < most and (between > 0.2) == (density is gaussian)
        assert 0.45 < float((draws > 0).float().mean()) < 0.55


def test_views_of_an_image_are_held_out_together() -> None:
    """A Gaussian of every image twice is that of the images: no image is judged by its own other view."""
    blobs = two_blobs(count=42, latents=30)
    twice = DiagonalGaussian(blobs.mean.repeat(2, 1), blobs.logvar.repeat(2, 1))
    assert best_shrinkage(twice, views=2) == best_shrinkage(blobs) > best_shrinkage(twice)


def test_more_draws_than_components_know_still_come_from_them() -> None:
    assert MixtureDensity(LATENTS, 3).sample(50, generator()).shape == (50, LATENTS)
    assert bool(torch.isfinite(GaussianDensity(LATENTS).sample(50, generator())).all())


@pytest.fixture
def folder(tmp_path):
    save_pretrained(tmp_path, CONFIG, build_model(CONFIG, seed=3).state_dict(), {})
    return tmp_path


def edit(folder, change) -> None:
    description = json.loads((folder / "config.json").read_text())
    change(description)
    (folder / "config.json").write_text(json.dumps(description))


def test_a_model_without_a_density_samples_from_the_prior(folder) -> None:
    edit(folder, lambda description: description.update(format=1))
    model = load_pretrained(folder)
    assert isinstance(model.density, NormalDensity)
    assert torch.equal(model.sample(2, generator()), model.sample(2, generator(), density="normal"))


def test_mixtures_of_before_draw_as_then(folder) -> None:
    """Under the names of version 0.1.0, and without the number of coordinates, which was 64."""
    mixture = MixtureDensity(80, 2, 64)
    mixture.load_state_dict(fit_gaussian(two_blobs(latents=80)).state_dict(), strict=False)
    mixture.weights, mixture.centers = torch.tensor([0.3, 0.7]), torch.randn(2, 64, generator=generator())
    old_names = {"centers": "centres"}
    write_tensors(folder / FILE_NAME, {old_names.get(name, name): t for name, t in mixture.state_dict().items()})
    for sizes in ({"components": 2}, {"components": 2, "bent": 64}):
        again = read_density(folder, {"kind": "mixture", "latents": 80, "sizes": sizes})
        assert torch.equal(again.sample(4, generator()), mixture.sample(4, generator()))


def test_a_flow_of_before_is_replaced_by_the_prior(folder) -> None:
    """Its tensors are not read; `sample` says so (tests/inference/test_generate.py)."""
    save_density(folder, fit_gaussian(two_blobs()), {})
    edit(folder, lambda description: description["density"].update(kind="flow", sizes={"components": 2, "bent": 5}))
    assert isinstance(load_pretrained(folder).density, NormalDensity)


def test_a_newer_format_is_said(folder) -> None:
    edit(folder, lambda description: description.update(format=99))
    with pytest.raises(CheckpointError, match="newer version"):
        load_pretrained(folder)


@pytest.mark.parametrize("damage", ["missing", "cut", "other kind", "other latents", "unknown kind"])
def test_a_damaged_density_is_named(folder, damage: str) -> None:
    save_density(folder, fit_gaussian(two_blobs()), {})
    tensors = folder / "density.safetensors"
    match damage:
        case "missing":
            tensors.unlink()
        case "cut":
            tensors.write_bytes(tensors.read_bytes()[:100])
        case "other kind":
            edit(folder, lambda description: description["density"].update(kind="mixture", sizes={"components": 2}))
        case "other latents":
            save_density(folder, NormalDensity(LATENTS + 1), {})
        case "unknown kind":
            edit(folder, lambda description: description["density"].update(kind="copula"))
    with pytest.raises(CheckpointError, match="latent density"):
        load_pretrained(folder)


def test_another_export_leaves_no_old_density_behind(folder) -> None:
    save_density(folder, fit_gaussian(two_blobs()), {})
    save_pretrained(folder, CONFIG, build_model(CONFIG, seed=4).state_dict(), {})
    assert isinstance(load_pretrained(folder).density, NormalDensity)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
