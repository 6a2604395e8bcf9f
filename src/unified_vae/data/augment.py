"""Random changes of training images, on whatever device they are, all images of a batch at once.

Each change draws from a stream of its own, keyed by its name, so that adding one never alters the others;
and each draw is a function of (seed, epoch, image), so that resuming and the number of ranks alter nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy.typing as npt
import torch
from torch import Tensor

from unified_vae.core.counter import key, uniforms
from unified_vae.data.config import AugmentConfig

Augmentation = Callable[[Tensor, Tensor], Tensor]
"""(images uint8 [n, c, h, w], draws float32 [n, k] in [0, 1]) -> images of the same shape and type."""


def horizontal_flip(images: Tensor, draws: Tensor) -> Tensor:
    """Mirror the images whose draw is below one half."""
    mirrored = draws[:, 0] < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def chosen(config: AugmentConfig) -> list[tuple[str, Augmentation, int]]:
    """(stream, augmentation, draws per image) of those switched on, in the order they are applied."""
    table: list[tuple[bool, str, Augmentation, int]] = [
        (config.horizontal_flip, "horizontal flip", horizontal_flip, 1),
    ]
    return [(name, change, draws) for wanted, name, change, draws in table if wanted]


def augment(images: Tensor, indices: npt.ArrayLike, *, config: AugmentConfig, seed: int, epoch: int) -> Tensor:
    """The batch as it is trained on.

    Args:
        images: uint8 [n, channels, height, width].
        indices: [n], the images' numbers in the split.
    """
    for name, change, count in chosen(config):
        draws = uniforms(key(seed, "augment", name, epoch), indices, count)
        draws_float32 = torch.from_numpy(draws).float()  # float32 on every device: MPS has no float64
        images = change(images, draws_float32.to(images.device, non_blocking=True))
    return images
