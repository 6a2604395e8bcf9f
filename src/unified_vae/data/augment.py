"""Random changes of training images, on whatever device they are, all images of a batch at once.

Each change draws from a stream of its own, keyed by its name, so that adding one never alters the others;
and each draw is a function of (seed, epoch, image), so that resuming and the number of ranks alter nothing.
All changes of geometry are one map and one resampling, and values are rounded to 8 bits once, at the end.

Bilinear resampling at random positions leaves about half of the energy of fine detail (beyond half the Nyquist
frequency), bicubic four fifths, and a VAE would learn that blur. So the images are first upsampled by two with a
windowed sinc, as in the augmentation of StyleGAN2-ADA (Karras et al. 2020, arXiv 2006.06676), and sampled
bicubically from there, which keeps all of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from unified_vae.config.data import AffineConfig, AugmentConfig, ColorJitterConfig, CropConfig
from unified_vae.core.device import to_device
from unified_vae.core.rng import key, uniforms

Floats = npt.NDArray[np.float64]
Draw = Callable[[str, int], Floats]
"""(name of a change, numbers per image) -> [numbers, n], uniform in [0, 1)."""

MID_GRAY = 127.5
LUMA = (0.299, 0.587, 0.114)  # of red, green, blue: ITU-R BT.601
TAPS = 8  # pixels on either side that a value between two pixels is computed from
KAISER_BETA = 4.0
MAX_CHUNK_VALUES = 1 << 23  # of upsampled images held at a time: 32 MiB


def augment(images: Tensor, indices: npt.ArrayLike, *, config: AugmentConfig, seed: int, epoch: int) -> Tensor:
    """Return the batch as it is trained on.

    Args:
        images: uint8 [n, channels, height, width].
        indices: [n], the images' numbers in the split.

    Returns:
        uint8 of the same shape and layout; `images` itself where nothing is switched on.
    """

    def draw(name: str, count: int) -> Floats:
        return uniforms(key(seed, "augment", name, epoch), indices, count).T

    if config.horizontal_flip:
        flipped = to_device(torch.from_numpy(draw("horizontal flip", 1)[0] < 0.5), images.device)
        images = torch.where(flipped[:, None, None, None], images.flip(3), images)
    geometry = config.affine != AffineConfig() or config.crop != CropConfig()
    color = config.color_jitter != ColorJitterConfig()
    if not (geometry or color):
        return images
    pixels = images.to(torch.float32, memory_format=torch.contiguous_format)
    if geometry:
        pixels = resample(pixels, _affine_maps(config, draw, *images.shape[2:]))
    if color:
        pixels = _jitter_color(pixels, config.color_jitter, draw)

    # Rounded and clipped, in the memory layout of the input
    channels_last = images.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return pixels.round().clamp(0, 255).to(torch.uint8, memory_format=layout)


def describe(config: AugmentConfig) -> str:
    """Return what is switched on, as text."""
    affine, color = config.affine, config.color_jitter
    parts = [
        (config.horizontal_flip, "half of the images mirrored"),
        (affine.rotate_degrees, f"turned by up to {affine.rotate_degrees:g} degrees"),
        (affine.scale, f"scaled by up to {1 + affine.scale:g}"),
        (affine.translate, f"shifted by up to {affine.translate:g} of the side"),
        (config.crop.min_scale < 1, f"cropped to {config.crop.min_scale:g} of the side or more"),
        (color.brightness, f"brightness +-{color.brightness:g}"),
        (color.contrast, f"contrast +-{color.contrast:g}"),
        (color.saturation, f"saturation +-{color.saturation:g}"),
    ]
    return ", ".join(text for enabled, text in parts if enabled) or "none"


def _affine_maps(config: AugmentConfig, draw: Draw, height: int, width: int) -> Floats:
    """All changes of geometry as one map, [n, 2, 3], from the result to the image, whose edges are at -1 and 1."""
    affine, smallest = config.affine, config.crop.min_scale
    aspect = height / width
    angle = np.radians(affine.rotate_degrees) * _signed(draw("rotation", 1)[0])
    factor = (1 + affine.scale) ** -_signed(draw("scale", 1)[0])
    sides = np.array([[width], [height]])
    shift = np.rint(affine.translate * sides * _signed(draw("translation", 2))) * 2 / sides
    part, *center = draw("crop", 3)
    part = smallest + (1 - smallest) * part
    center_x, center_y = (1 - part) * _signed(np.stack(center)) - shift
    cosine, sine = factor * np.cos(angle), factor * np.sin(angle)
    rows = [
        [cosine * part, -sine * aspect * part, cosine * center_x - sine * aspect * center_y],
        [sine / aspect * part, cosine * part, sine / aspect * center_x + cosine * center_y],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def _jitter_color(pixels: Tensor, config: ColorJitterConfig, draw: Draw) -> Tensor:
    """Saturation about each pixel's gray, then contrast about mid gray, then brightness; none of them biased."""

    def on_device(values: Floats) -> Tensor:
        return to_device(torch.from_numpy(values).float(), pixels.device)[:, None, None, None]

    if config.saturation and pixels.shape[1] == 3:
        red, green, blue = pixels.split(1, dim=1)
        gray = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
        saturation = on_device(1 + config.saturation * _signed(draw("saturation", 1)[0]))
        pixels = gray + saturation * (pixels - gray)
    contrast = 1 + config.contrast * _signed(draw("contrast", 1)[0])
    brightness = 255 * config.brightness * _signed(draw("brightness", 1)[0])
    return on_device(contrast) * pixels + on_device((1 - contrast) * MID_GRAY + brightness)


def _signed(draws: Floats) -> Floats:
    """Map [0, 1) to [-1, 1)."""
    return 2 * draws - 1


def resample(pixels: Tensor, maps: Floats) -> Tensor:
    """Return the images as seen through affine maps, mirrored beyond their edges.

    A map that leads to pixel centers gives their very values, so that whole-pixel shifts lose nothing.

    Args:
        pixels: float32 [n, channels, height, width], contiguous.
        maps: [n, 2, 3], from a point (x, y, 1) in the result to the point (x, y) that is seen there; the edges
            of an image are at -1 and 1.

    Returns:
        float32 of the same shape; values may overshoot their range as a sinc does.
    """
    on_device = to_device(torch.from_numpy(maps).float(), pixels.device)  # float32: MPS has no float64
    chunks = min(len(pixels), math.ceil(4 * pixels.numel() / MAX_CHUNK_VALUES))
    batches = zip(pixels.tensor_split(chunks), on_device.tensor_split(chunks), strict=True)
    return torch.cat([_resample_chunk(chunk, chunk_maps) for chunk, chunk_maps in batches])


def _resample_chunk(pixels: Tensor, maps: Tensor) -> Tensor:
    n, channels, height, width = pixels.shape

    # Upsample to [n, channels, 2 height + 1, 2 width + 1], from edge to edge in steps of half a pixel. The first and
    # last rows and columns lie on the edges, so that `grid_sample` mirrors there. bmm computes each plane for itself,
    # where a single matrix product might round differently in a batch of another size.
    planes = pixels.reshape(n * channels, height, width)
    across = _upsampling_matrix(width, maps.device).T.expand(n * channels, -1, -1)
    down = _upsampling_matrix(height, maps.device).expand(n * channels, -1, -1)
    fine = torch.bmm(down, torch.bmm(planes, across)).unflatten(0, (n, channels))

    # Where each pixel is sampled, [n, height, width, 2]; by elementwise steps, so alike in a batch of any size
    x = (2 * torch.arange(width, device=maps.device) + 1) / width - 1
    y = ((2 * torch.arange(height, device=maps.device) + 1) / height - 1)[:, None]
    a, b, c = maps[:, :, :, None, None].unbind(2)  # each [n, 2, 1, 1]
    grid = (a * x + b * y + c).permute(0, 2, 3, 1)
    return F.grid_sample(fine, grid, mode="bicubic", padding_mode="reflection", align_corners=True)


@lru_cache(maxsize=8)
def _upsampling_matrix(size: int, device: torch.device) -> Tensor:
    """The matrix [2 size + 1, size] from pixels to half pixels; the pixels themselves are kept as they are."""
    offset = np.arange(1, TAPS + 1) - 0.5
    window = np.i0(KAISER_BETA * np.sqrt(1 - (offset / TAPS) ** 2)) / np.i0(KAISER_BETA)
    weights = np.sinc(offset) * window
    weights /= 2 * weights.sum()  # a plain surface stays as it is
    matrix = np.zeros((2 * size + 1, size))
    matrix[2 * np.arange(size) + 1, np.arange(size)] = 1
    between = np.arange(size + 1)  # half way between the pixels `between` - 1 and `between`
    for tap, weight in enumerate(weights):
        for neighbor in (between - 1 - tap, between + tap):
            mirrored = neighbor % (2 * size)  # beyond the edges: -1 is 0, -2 is 1
            np.add.at(matrix, (2 * between, np.where(mirrored < size, mirrored, 2 * size - 1 - mirrored)), weight)
    return torch.from_numpy(matrix).float().to(device)
