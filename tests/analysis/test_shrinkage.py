"""The start from few images: components of a shrunk covariance, better on unseen images than a PCA or a DCT."""

import numpy as np
import pytest
import torch

from tests.analysis.test_principal import FLIP, PLAIN, Images, some_images
from unified_vae.analysis.pca import principal_components
from unified_vae.analysis.shrinkage import color_axes, dct_matrix, smooth_spectrum
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


def test_the_transform_is_orthonormal():
    for matrix in (dct_matrix(7), dct_matrix(64), color_axes(1), color_axes(3), color_axes(4)):
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(len(matrix)), atol=1e-5, rtol=0)


def test_the_smooth_spectrum_averages_similar_frequencies():
    coefficients = torch.zeros(5, 3, 16, 16)
    coefficients[:, 1, 12, 9] = 3.0
    spectrum = smooth_spectrum(coefficients.flatten(1), 3, 16).view(3, 16, 16)
    shared = spectrum[1] > 2 * float(spectrum.min())
    assert 1 < int(shared.sum()) < 40 and bool(shared[12, 9])
    torch.testing.assert_close(spectrum.sum(), torch.tensor(9.0), rtol=1e-2, atol=0)
    assert float(spectrum[0].max()) < 1e-4 and float(spectrum.min()) > 0


@pytest.mark.parametrize("augmentation", [PLAIN, FLIP])
@pytest.mark.parametrize("count", [2, 3, 20, 150])
def test_few_images_give_a_whole_orthonormal_basis(count, augmentation):
    basis = start(count, augmentation)
    flat = basis.components.flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(COUNT), atol=1e-5, rtol=0)
    assert (np.diff(basis.eigenvalues) <= 0).all() and basis.rest(COUNT) > 0
    assert basis.images == count and len(basis.weights) == 4


@pytest.mark.parametrize("count", [12, 40, 100])
def test_it_beats_the_dct_and_the_pca(count):
    error = unseen_error(start(count))
    falls = np.add.outer(np.arange(SIDE) ** 2, np.arange(SIDE) ** 2)
    order = np.concatenate([falls.ravel() + 1, 12 * (falls.ravel() + 1), 12 * (falls.ravel() + 1)]).argsort()[:LATENTS]
    waves = np.einsum("ky,lx->klyx", dct_matrix(SIDE), dct_matrix(SIDE)).reshape(SIDE**2, 1, SIDE**2)
    dct = torch.from_numpy((color_axes(3).numpy()[:, None, :, None] * waves).reshape(3 * SIDE**2, -1)[order]).float()
    images = torch.from_numpy(natural(200, seed=1)).permute(0, 3, 1, 2).float() / 255
    away = (images - torch.from_numpy(natural(count)).permute(0, 3, 1, 2).float().mean(0) / 255).flatten(1)
    assert error < float((away - away @ dct.T @ dct).square().sum(1).mean())
    assert error < unseen_error(start(count, latents=None))


@pytest.mark.parametrize("count", [12, 40, 120])
def test_its_variances_are_those_of_unseen_images(count):
    basis = start(count)
    assert 0.7 < basis.rest(LATENTS) / unseen_error(basis) < 1.4
    assert basis.rest(LATENTS) > 2 * start(count, latents=None).rest(LATENTS)


def test_many_images_give_the_pca_to_the_bit():
    for count, latents in ((400, 8), (80, 4)):
        split = some_images(count=count)
        asked, plain = (principal_components(split, 16, PLAIN, 0, latents=k) for k in (latents, None))
        assert not asked.weights and asked.total == plain.total
        assert torch.equal(asked.components, plain.components)
        assert np.array_equal(asked.eigenvalues, plain.eigenvalues)


def test_large_images_are_planned_at_full_size():
    small = natural(30)
    basis = principal_components(Images(small), COUNT, PLAIN, 0, latents=LATENTS)
    large = small.repeat(8, axis=1).repeat(8, axis=2)  # 128 px, averaged down to 64
    scaled = principal_components(Images(large), COUNT, PLAIN, 0, latents=LATENTS)
    assert scaled.covered == 4.0
    assert scaled.total == pytest.approx(64 * basis.total, rel=2e-2)


def test_images_that_do_not_differ_stay_a_pca_of_nothing():
    same = Images(np.full((6, 8, 8, 3), 100, dtype=np.uint8))
    for split in (same, Images(natural(1))):
        basis = principal_components(split, 10, PLAIN, 0, latents=8)
        assert not basis.weights and float(basis.eigenvalues.max()) == pytest.approx(0, abs=1e-9)


def test_it_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    first, again = start(20), start(20)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.components, again.components)
