"""The PCA of the training images against an exact one, and its independence of everything but the data."""

import numpy as np
import pytest
import torch

from unified_vae.analysis.pca import _truncated_svd, principal_components
from unified_vae.config.data import AugmentConfig
from unified_vae.core.linear_vae import compose, project

PLAIN = AugmentConfig()
FLIP = AugmentConfig(horizontal_flip=True)


class Images:
    """What the PCA needs of a packed split."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images
        self.shape = images.shape

    def __len__(self) -> int:
        return len(self.images)


def some_images(count: int = 60, size: int = 8, channels: int = 3, seed: int = 0) -> Images:
    """A few strong directions and a little noise."""
    rng = np.random.default_rng(seed)
    patterns = rng.normal(0, 1, (5, size, size, channels))
    strengths = rng.normal(0, 1, (count, 5)) * [30, 20, 12, 8, 5]
    pictures = 128 + np.einsum("nk,khwc->nhwc", strengths, patterns) + rng.normal(0, 1, (count, size, size, channels))
    return Images(pictures.clip(0, 255).round().astype(np.uint8))


def exact(images: np.ndarray) -> np.ndarray:
    flat = images.reshape(len(images), -1) / 255
    return np.linalg.svd(flat - flat.mean(0), compute_uv=False) ** 2 / len(flat)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_spectrum_is_the_exact_one(channels):
    split = some_images(channels=channels)
    basis = principal_components(split, 5, PLAIN, seed=0)
    np.testing.assert_allclose(basis.eigenvalues, exact(split.images)[:5], rtol=1e-3)
    assert basis.total == pytest.approx(exact(split.images).sum(), rel=1e-5)
    assert (basis.covered, basis.images) == (1.0, len(split))


@pytest.mark.parametrize(
    ("count", "off"), [(12, 0.06), (30, 1e-4), (58, 1e-4)]
)  # randomized, and exact where rows are few
def test_a_spectrum_that_falls_slowly_is_exact_to_its_end(count, off):
    rng = np.random.default_rng(1)
    split = Images(rng.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8))
    basis = principal_components(split, count, PLAIN, seed=0)
    np.testing.assert_allclose(basis.eigenvalues, exact(split.images)[:count], rtol=off)
    flat = basis.components.flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(count), atol=1e-5, rtol=0)


def test_components_that_are_faint_beside_the_first_are_exact():
    """A part of 1e-4 and less of the first one: its square is lost where products are formed in fp32."""
    rng, falls = np.random.default_rng(0), np.arange(1, 101.0) ** -2
    left, right = (np.linalg.qr(rng.normal(size=(side, 100)))[0] for side in (100, 400))
    rows = torch.from_numpy((left * falls) @ right.T).float()
    singular, vectors = _truncated_svd(rows, 80, seed=0)
    np.testing.assert_allclose(singular, np.linalg.svd(rows.double().numpy(), compute_uv=False)[:80], rtol=1e-4)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(80), atol=1e-5, rtol=0)


def test_the_components_are_orthonormal_and_rebuild_the_images():
    split = some_images()
    basis = principal_components(split, 59, PLAIN, seed=0)
    flat = basis.components.flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(len(flat)), atol=1e-4, rtol=0)
    images = torch.from_numpy(split.images).permute(0, 3, 1, 2).float() / 255
    torch.testing.assert_close(compose(project(images, basis), basis, 8), images, atol=2e-3, rtol=0)


def test_fewer_images_than_components_give_what_they_have():
    basis = principal_components(some_images(count=4), 10, PLAIN, seed=0)
    assert len(basis.eigenvalues) == len(basis.components) == 3
    single = principal_components(some_images(count=1), 10, PLAIN, seed=0)
    assert len(single.eigenvalues) == 1 and float(single.eigenvalues[0]) == pytest.approx(0, abs=1e-9)


def test_mirroring_gives_the_spectrum_with_all_mirror_images():
    split = some_images(count=200)
    basis = principal_components(split, 6, FLIP, seed=0)
    assert basis.images == 2 * 200
    both = exact(np.concatenate([split.images, split.images[:, :, ::-1]]))
    np.testing.assert_allclose(basis.eigenvalues, both[:6], rtol=1e-3)
    assert abs(both[0] / exact(split.images)[0] - 1) > 0.2  # which differs from that of the images alone


def test_other_augmentation_is_seen_in_several_versions():
    turned = AugmentConfig.model_validate({"affine": {"translate": 0.2}})
    split = some_images(count=200)
    basis = principal_components(split, 6, turned, seed=0)
    assert basis.images == 8 * 200
    assert abs(basis.eigenvalues[0] / exact(split.images)[0] - 1) > 0.05


def test_large_images_are_averaged_down_and_keep_their_variance():
    small = some_images(size=16)
    large = Images(small.images.repeat(8, axis=1).repeat(8, axis=2))  # 128 px, each pixel 64 times
    basis, plain = (principal_components(images, 5, PLAIN, seed=0) for images in (large, small))
    assert basis.mean.shape == (3, 64, 64) and basis.covered == 4.0
    np.testing.assert_allclose(basis.eigenvalues, 64 * plain.eigenvalues, rtol=1e-3)
    assert basis.total == pytest.approx(64 * plain.total, rel=1e-4)


def test_pca_depends_on_the_seed_and_not_on_torchs_generator():
    split = some_images()
    before = torch.random.get_rng_state()
    first, again = (principal_components(split, 5, PLAIN, seed=3) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.components, again.components)
