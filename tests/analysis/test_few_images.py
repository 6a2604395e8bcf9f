"""The start from few images: no more principal components than held-out images support, the DCT for the others."""

import numpy as np
import pytest
import torch
from test_principal import FLIP, PLAIN, Images, some_images

from unified_vae.analysis.pca import dct_components, principal_components
from unified_vae.core.linear_vae import compose, project

SIDE, LATENTS, COUNT = 16, 64, 128


def natural(count: int, seed: int = 0, side: int = SIDE) -> np.ndarray:
    """Images [count, side, side, 3] of a 1/f spectrum with faint chroma, and of four patterns of their own."""
    rng = np.random.default_rng(seed)
    frequencies = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)) * side + 1
    waves = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(3, count, side, side))) / frequencies**1.5, s=(side, side))
    axes = np.array([[1, 1, 1], [0.3, 0, -0.3], [0.2, -0.4, 0.2]])
    patterns = np.random.default_rng(9).normal(size=(4, side, side, 3))
    pictures = np.einsum("anhw,ac->nhwc", waves, axes) * 150 + 12 * np.einsum(
        "nk,khwc->nhwc", rng.normal(size=(count, 4)), patterns
    )
    return (128 + pictures).clip(0, 255).round().astype(np.uint8)


def unseen_error(basis, components: int = LATENTS) -> float:
    """Mean squared error of the first components on other images, per image."""
    images = torch.from_numpy(natural(200, seed=1)).permute(0, 3, 1, 2).float() / 255
    linear = compose(project(images, basis)[:, :components], basis, SIDE)
    return float((linear - images).square().flatten(1).sum(1).mean())


def start(count: int, augmentation=PLAIN, latents: int | None = LATENTS):
    return principal_components(Images(natural(count)), COUNT, augmentation, seed=0, latents=latents)


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 7)])
def test_all_dct_components_are_an_orthonormal_basis(channels, side):
    flat = dct_components(channels, side, 10_000).flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(channels * side**2), atol=1e-5, rtol=0)


def test_dct_components_start_with_gray_and_slow_waves():
    first = dct_components(3, 16, 3)
    assert bool((first == first[:, :1]).all())  # no color
    assert float(first[0].std()) < 1e-7 < float(first[1].std())
    chroma = dct_components(3, 16, 64).mean(1).abs().amax((1, 2)) < 1e-7
    assert 4 < int(chroma.sum()) < 24


@pytest.mark.parametrize("augmentation", [PLAIN, FLIP])
@pytest.mark.parametrize("count", [2, 3, 20, 150])
def test_few_images_give_a_whole_orthonormal_basis(count, augmentation):
    basis = start(count, augmentation)
    flat = basis.components.flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(COUNT), atol=1e-5, rtol=0)
    assert (np.diff(basis.eigenvalues) <= 0).all() and basis.rest(COUNT) > 0
    assert LATENTS - basis.dct < basis.images


@pytest.mark.parametrize("count", [12, 40, 100])
def test_it_beats_the_dct_and_the_pca(count):
    error = unseen_error(start(count))
    dct = dct_components(3, SIDE, LATENTS).flatten(1)
    images = torch.from_numpy(natural(200, seed=1)).permute(0, 3, 1, 2).float() / 255
    away = (images - torch.from_numpy(natural(count)).permute(0, 3, 1, 2).float().mean(0) / 255).flatten(1)
    assert error < 1.02 * float((away - away @ dct.T @ dct).square().sum(1).mean())
    assert error < unseen_error(start(count, latents=None))


@pytest.mark.parametrize("count", [12, 40, 120])
def test_its_variances_are_those_of_unseen_images(count):
    basis = start(count)
    assert 0.7 < basis.rest(LATENTS) / unseen_error(basis) < 1.4
    assert basis.rest(LATENTS) > 2 * start(count, latents=None).rest(LATENTS)


def test_many_images_give_the_pca_to_the_bit():
    for count, latents in ((400, 8), (80, 4)):  # unchecked, and checked
        split = some_images(count=count)
        asked, plain = (principal_components(split, 16, PLAIN, 0, latents=k) for k in (latents, None))
        assert asked.dct == 0 and asked.total == plain.total
        assert torch.equal(asked.components, plain.components)
        assert np.array_equal(asked.eigenvalues, plain.eigenvalues)


def test_large_images_are_planned_at_full_size():
    small = natural(30)
    basis = principal_components(Images(small), COUNT, PLAIN, 0, latents=LATENTS)
    large = small.repeat(8, axis=1).repeat(8, axis=2)  # 128 px, averaged down to 64
    scaled = principal_components(Images(large), COUNT, PLAIN, 0, latents=LATENTS)
    assert scaled.covered == 4.0
    assert scaled.total == pytest.approx(64 * basis.total, rel=1e-3)


def test_images_that_do_not_differ_stay_a_pca_of_nothing():
    same = Images(np.full((6, 8, 8, 3), 100, dtype=np.uint8))
    for split in (same, Images(natural(1))):
        basis = principal_components(split, 10, PLAIN, 0, latents=8)
        assert basis.dct == 0 and float(basis.eigenvalues.max()) == pytest.approx(0, abs=1e-9)


def test_it_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    first, again = start(20), start(20)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.components, again.components)
