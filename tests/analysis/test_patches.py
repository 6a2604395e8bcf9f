"""PCA of patches: against the plain decomposition of all patches, and what it says of a map of latents."""

import numpy as np
import pytest
import torch

from unified_vae.analysis.pca import extract_patches, patch_components
from unified_vae.config.data import AugmentConfig
from unified_vae.core.linear_vae import compose, project


@pytest.fixture(scope="module")
def pixels():
    rng = np.random.default_rng(0)
    smooth = rng.uniform(0, 255, (40, 4, 4, 3)).repeat(4, 1).repeat(4, 2) + rng.normal(0, 20, (40, 16, 16, 3))
    return smooth.clip(0, 255).round().astype(np.uint8)


class Split:
    """A packed split in memory."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)


def test_patches_are_cut_in_rows_and_hold_every_pixel_once(pixels):
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    cut = extract_patches(images, 8).unflatten(0, (len(images), 2, 2))
    for row in (0, 1):
        for column in (0, 1):
            window = images[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            assert torch.equal(cut[:, row, column], window)


def test_the_components_are_those_of_all_patches(pixels):
    basis = patch_components(Split(pixels), 4, 10, AugmentConfig(), seed=0)
    rows = extract_patches(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, 4).flatten(1).double()
    away = rows - rows.mean(0)
    reference = torch.linalg.svdvals(away).square() / len(rows)
    torch.testing.assert_close(torch.from_numpy(basis.eigenvalues.copy()), reference[:10], rtol=1e-3, atol=1e-7)
    assert basis.total == pytest.approx(float(away.square().sum(1).mean()), rel=1e-4)
    flat = rows.float().unflatten(1, (3, 4, 4))
    left = (flat - compose(project(flat, basis), basis, 4)).square().flatten(1).sum(1).mean()
    assert float(left) == pytest.approx(float(reference[10:].sum()), rel=1e-3)


def test_no_more_components_than_a_patch_has_values(pixels):
    basis = patch_components(Split(pixels[..., :1]), 4, 100, AugmentConfig(), seed=0)
    assert basis.components.shape == (16, 1, 4, 4) and basis.images == 40


def test_mirrored_images_count_where_training_mirrors_them(pixels):
    basis = patch_components(Split(pixels), 4, 48, AugmentConfig(horizontal_flip=True), seed=0)
    torch.testing.assert_close(basis.mean, basis.mean.flip(2), rtol=0, atol=1e-5)
    assert basis.images == 80
