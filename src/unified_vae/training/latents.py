"""The posteriors of training images: what a latent density is fitted to."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from unified_vae.config.data import AugmentConfig
from unified_vae.core.counter import key, permutation
from unified_vae.core.posterior import MOST_CORRELATED, DiagonalGaussian
from unified_vae.data.batches import gather
from unified_vae.data.dataset import PackedSplit
from unified_vae.models.vae import VAE

BATCH = 64  # images at once: fixed, so that the figures do not depend on what fits into memory
BATCH_PIXELS = BATCH * 256**2
ENOUGH_FOR_UNITS = 1000  # images, where each unit is looked at by itself

Progress = Callable[[int, int], None]
"""Called with (done, of how many)."""


def at_once(model: VAE) -> int:
    """Images to encode at once."""
    return max(1, min(BATCH, BATCH_PIXELS // model.image_size**2))


@torch.no_grad()
def posteriors(
    model: VAE, split: PackedSplit, at_most: int, seed: int, progress: Progress | None = None, mirrored: bool = False
) -> DiagonalGaussian:
    """q(z|x) of `at_most` images of a split, chosen by the seed, on the CPU: [n, latents]; without augmentation.

    Of a model with more than MOST_CORRELATED latents no more than ENOUGH_FOR_UNITS.

    Args:
        mirrored: of the images' mirror images.
    """
    if model.latents > MOST_CORRELATED:
        at_most = min(at_most, ENOUGH_FOR_UNITS)
    chosen = np.sort(permutation(key(seed, "density images"), len(split))[:at_most])
    device = next(model.parameters()).device
    found = []
    batch = at_once(model)
    for start in range(0, len(chosen), batch):
        raw = gather(split, chosen[start : start + batch])
        images = raw.to(device).float() / 255
        found.append(model.encode(images.flip(3) if mirrored else images))
        if progress:
            progress(min(start + batch, len(chosen)), len(chosen))
    means, logvars = ([getattr(posterior, name).cpu() for posterior in found] for name in ("mean", "logvar"))
    return DiagonalGaussian(torch.cat(means), torch.cat(logvars))


def views(model: VAE, split: PackedSplit, at_most: int, augment: AugmentConfig) -> int:
    """Of each image, for a density of correlated units: 2 where the model learned mirror images too, and few images."""
    mirrored = augment.horizontal_flip and 2 * len(split) <= at_most and model.latents <= MOST_CORRELATED
    return 2 if mirrored else 1
