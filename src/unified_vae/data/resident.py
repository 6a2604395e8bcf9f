"""All training images in a GPU's own memory, where they fit: a batch is gathered there, and nothing is copied to it.

The pixels are those of the pack, so batches are the same bits wherever they come from.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from unified_vae.core.device import to_device
from unified_vae.data.packing.packed import PackedSplit

PART = 0.25  # of the free memory: the rest is for the network, whose need is not known yet
CHUNK_BYTES = 256 * 2**20  # copied at a time


def fits(split: PackedSplit, free_bytes: int) -> bool:
    """Whether the images take at most PART of so much memory."""
    return int(np.prod(split.shape)) <= PART * free_bytes


def load_all(split: PackedSplit, device: torch.device) -> Tensor:
    """The images as the pack has them, uint8 [n, height, width, channels], on the device.

    Raises:
        torch.OutOfMemoryError: they do not fit after all.
    """
    images = torch.empty(split.shape, dtype=torch.uint8, device=device)
    at_once = max(1, CHUNK_BYTES // int(np.prod(split.shape[1:])))
    for first in range(0, len(split), at_once):
        chunk = np.array(split.images[first : first + at_once])  # a copy, since the map is read-only
        images[first : first + len(chunk)] = torch.from_numpy(chunk)
    return images


def gather(images: Tensor, indices: Tensor) -> Tensor:
    """Images by their numbers: uint8 [n, channels, height, width], channels last in memory, on the device."""
    return images.index_select(0, to_device(indices, images.device)).permute(0, 3, 1, 2)
