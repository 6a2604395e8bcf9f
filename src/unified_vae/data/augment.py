"""Random changes of training images, on whatever device they are, all images of a batch at once.

Each change draws from a stream of its own, keyed by its name, so that adding one never alters the others;
and each draw is a function of (seed, epoch, image), so that resuming and the number of ranks alter nothing.
All changes of geometry are one map and one resampling, and values are rounded to 8 bits once, at the end.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unified_vae.config.data import AffineConfig, AugmentConfig, ColorJitterConfig, CropConfig
from unified_vae.core.counter import key, uniforms
from unified_vae.core.device import to_device
from unified_vae.data.resample import resample

Floats = npt.NDArray[np.float64]
Draw = Callable[[str, int], Floats]
"""(name of a change, numbers an image) -> [numbers, n], uniform in [0, 1)."""

MID_GREY = 127.5
LUMA = (0.299, 0.587, 0.114)  # of red, green, blue: ITU-R BT.601


def augment(images: Tensor, indices: npt.ArrayLike, *, config: AugmentConfig, seed: int, epoch: int) -> Tensor:
    """The batch as it is trained on.

    Args:
        images: uint8 [n, channels, height, width].
        indices: [n], the images' numbers in the split.

    Returns:
        uint8 of the same shape and layout; `images` itself where nothing is switched on.
    """

    def draw(name: str, count: int) -> Floats:
        return uniforms(key(seed, "augment", name, epoch), indices, count).T

    if config.horizontal_flip:
        images = _flipped(images, draw)
    moves = config.affine != AffineConfig() or config.crop != CropConfig()
    colours = config.color_jitter != ColorJitterConfig()
    if not (moves or colours):
        return images
    pixels = images.to(torch.float32, memory_format=torch.contiguous_format)
    if moves:
        pixels = resample(pixels, _maps(config, draw, *images.shape[2:]))
    if colours:
        pixels = _recoloured(pixels, config.color_jitter, draw)
    return _as_8_bits(pixels, images)


def describe(config: AugmentConfig) -> str:
    """What is switched on, in words."""
    affine, colour = config.affine, config.color_jitter
    parts = [
        (config.horizontal_flip, "half of the images mirrored"),
        (affine.rotate_degrees, f"turned by up to {affine.rotate_degrees:g} degrees"),
        (affine.scale, f"scaled by up to {1 + affine.scale:g}"),
        (affine.translate, f"shifted by up to {affine.translate:g} of the side"),
        (config.crop.min_scale < 1, f"cropped to {config.crop.min_scale:g} of the side or more"),
        (colour.brightness, f"brightness +-{colour.brightness:g}"),
        (colour.contrast, f"contrast +-{colour.contrast:g}"),
        (colour.saturation, f"saturation +-{colour.saturation:g}"),
    ]
    return ", ".join(words for wanted, words in parts if wanted) or "none"


def _flipped(images: Tensor, draw: Draw) -> Tensor:
    """Half of the images mirrored."""
    mirrored = to_device(torch.from_numpy(draw("horizontal flip", 1)[0] < 0.5), images.device)
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def _maps(config: AugmentConfig, draw: Draw, height: int, width: int) -> Floats:
    """All changes of geometry as one map, [n, 2, 3], from the result to the image, whose edges are at -1 and 1."""
    affine, smallest = config.affine, config.crop.min_scale
    aspect = height / width
    angle = np.radians(affine.rotate_degrees) * _either_way(draw("rotation", 1)[0])
    factor = (1 + affine.scale) ** -_either_way(draw("scale", 1)[0])
    sides = np.array([[width], [height]])
    shift = np.rint(affine.translate * sides * _either_way(draw("translation", 2))) * 2 / sides
    part, *centre = draw("crop", 3)
    part = smallest + (1 - smallest) * part
    centre_x, centre_y = (1 - part) * _either_way(np.stack(centre)) - shift
    cosine, sine = factor * np.cos(angle), factor * np.sin(angle)
    rows = [
        [cosine * part, -sine * aspect * part, cosine * centre_x - sine * aspect * centre_y],
        [sine / aspect * part, cosine * part, sine / aspect * centre_x + cosine * centre_y],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def _recoloured(pixels: Tensor, config: ColorJitterConfig, draw: Draw) -> Tensor:
    """Saturation about each pixel's grey, then contrast about mid grey, then brightness; none of them biased."""

    def on_device(values: Floats) -> Tensor:
        return to_device(torch.from_numpy(values).float(), pixels.device)[:, None, None, None]

    if config.saturation and pixels.shape[1] == 3:
        red, green, blue = pixels.split(1, dim=1)
        grey = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
        saturation = on_device(1 + config.saturation * _either_way(draw("saturation", 1)[0]))
        pixels = grey + saturation * (pixels - grey)
    contrast = 1 + config.contrast * _either_way(draw("contrast", 1)[0])
    brightness = 255 * config.brightness * _either_way(draw("brightness", 1)[0])
    return on_device(contrast) * pixels + on_device((1 - contrast) * MID_GREY + brightness)


def _either_way(draws: Floats) -> Floats:
    """Uniform in [0, 1) -> uniform in [-1, 1)."""
    return 2 * draws - 1


def _as_8_bits(pixels: Tensor, like: Tensor) -> Tensor:
    """Rounded and clipped, in the memory layout of `like`."""
    last = like.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    return pixels.round().clamp(0, 255).to(torch.uint8, memory_format=layout)
