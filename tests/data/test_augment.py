"""Augmentation depends on (seed, epoch, image) and on nothing else."""

from __future__ import annotations

import numpy as np
import torch

from unified_vae.data.augment import augment
from unified_vae.data.config import AugmentConfig

FLIP = AugmentConfig(horizontal_flip=True)
IMAGES = torch.randint(0, 256, (64, 3, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
INDICES = np.arange(64) * 7


def test_off_is_the_identity() -> None:
    assert augment(IMAGES, INDICES, config=AugmentConfig(), seed=0, epoch=0) is IMAGES


def test_each_image_is_itself_or_its_mirror_and_about_half_are() -> None:
    result = augment(IMAGES, INDICES, config=FLIP, seed=0, epoch=0)
    mirrored = (result == IMAGES.flip(3)).flatten(1).all(1)
    assert ((result == IMAGES).flatten(1).all(1) ^ mirrored).all()
    assert 16 <= int(mirrored.sum()) <= 48  # four standard deviations
    assert result.dtype == torch.uint8 and result.shape == IMAGES.shape


def test_an_image_is_changed_alike_in_any_batch() -> None:
    whole = augment(IMAGES, INDICES, config=FLIP, seed=5, epoch=2)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    state = torch.get_rng_state()
    parts = [augment(IMAGES[part], INDICES[part.numpy()], config=FLIP, seed=5, epoch=2) for part in order.split(9)]
    assert torch.equal(torch.cat(parts), whole[order])
    assert torch.equal(torch.get_rng_state(), state)


def test_epochs_and_seeds_draw_anew() -> None:
    results = [augment(IMAGES, INDICES, config=FLIP, seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert not any(torch.equal(results[i], results[j]) for i in range(4) for j in range(i))


def test_channels_last_batches_are_mirrored_along_the_width() -> None:
    last = IMAGES.contiguous(memory_format=torch.channels_last)
    assert torch.equal(
        augment(last, INDICES, config=FLIP, seed=0, epoch=0),
        augment(IMAGES, INDICES, config=FLIP, seed=0, epoch=0),
    )
