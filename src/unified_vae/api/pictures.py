"""Tensors of images as Pillow images, one by one or as a plain grid."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_pil(images: Tensor) -> list[Image.Image]:
    """Images [n, channels, h, w] or one [channels, h, w] in [0, 1] as Pillow images, grey or RGB, of 8 bits."""
    images = images[None] if images.ndim == 3 else images
    pixels = (images.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(each[..., 0] if each.shape[-1] == 1 else np.ascontiguousarray(each)) for each in pixels]


def grid(images: Tensor, columns: int | None = None, gap: int = 2) -> Image.Image:
    """Images [n, channels, h, w] in rows on white; as many columns as rows unless told."""
    pictures = to_pil(images)
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    width, height = pictures[0].size
    canvas = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        canvas.paste(picture, (column * (width + gap), row * (height + gap)))
    return canvas
