"""Building blocks that the model families share: widths, norms, padding, the head, and PCA conditioning."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unified_vae.config.model import VectorConfig
from unified_vae.core.linear_vae import enlarge, working_side
from unified_vae.models.pca_skip import fold_factor, fold_to_size

MIN_MAP_SIZE = 4  # pixels along a side that the smallest feature map has at least
MAX_PCA_CHANNELS = 48  # of the PCA reconstruction as a feature map sees it: RGB folded by 4


class ScaledLinear(nn.Linear):
    """Linear layer with a per-output gain, gain * (W x) + bias, so that Adam's first steps keep the PCA initialization.

    An optimizer of the Adam kind moves every weight by the learning rate, so a layer of n inputs moves its output by n
    times as much in its first step. In the encoder's head, of 4,096 inputs, that threw the posterior means off by more
    than their own spread, and the PCA initialization was lost at once. A gain of 1/sqrt(n), the NTK parametrization of
    Jacot et al. 2018 (arXiv 1806.07572, section 3), makes these steps small.

    Attributes:
        gain: [outputs], 1 until `zero_init_rows`; a buffer, so that a file of weights says what it was trained with.
    """

    gain: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("gain", torch.ones(outputs))

    def forward(self, features: Tensor) -> Tensor:
        """Map [batch, inputs] to [batch, outputs]."""
        return torch.addcmul(self.bias, F.linear(features, self.weight), self.gain)

    @torch.no_grad()
    def zero_init_rows(self, first: int, count: int) -> None:
        """Let `count` outputs from `first` on start at zero, with a gain of 1/sqrt(inputs)."""
        rows = slice(first, first + count)
        self.weight[rows] = 0
        self.bias[rows] = 0
        self.gain[rows] = self.in_features**-0.5

    @torch.no_grad()
    def copy_rows(self, mask: Tensor, source: ScaledLinear) -> None:
        """Take the outputs where `mask` ([outputs], bool, on this module's device) is true from a like layer."""
        for dst, src in ((self.weight, source.weight), (self.bias, source.bias), (self.gain, source.gain)):
            dst[mask] = src.to(dst)[mask]


class PCAConditioning(nn.Module):
    """Feature maps are conditioned on the PCA reconstruction: its pixels folded into channels, then a convolution."""

    def __init__(self, channels: int, map_size: int, image_size: int, grid: int, channels_out: int) -> None:
        super().__init__()
        folded = channels * fold_factor(channels, map_size, pca_side(image_size, grid), MAX_PCA_CHANNELS) ** 2
        self.mix = nn.Conv2d(folded, channels_out, 3, 1, 1)

    def forward(self, reconstruction: Tensor, map_size: int) -> Tensor:
        """Map [batch, channels, side, side] to [batch, channels_out, map_size, map_size]."""
        features: Tensor = self.mix(fold_to_size(2.0 * reconstruction - 1.0, map_size, MAX_PCA_CHANNELS))
        return features


def stage_channels(config: VectorConfig) -> list[int]:
    """Return channels after each halving: doubling from `base_channels`, bounded by `max_multiplier`.

    An image is halved as often as leaves MIN_MAP_SIZE pixels along a side.
    """
    halvings = max(1, int(math.log2(config.image_size / MIN_MAP_SIZE)))
    return [config.base_channels * min(2**stage, config.max_multiplier) for stage in range(halvings)]


def norm(channels: int) -> nn.GroupNorm:
    """Build a GroupNorm (Wu & He 2018) with 32 groups, or the largest number of groups that divides the channels."""
    return nn.GroupNorm(math.gcd(32, channels), channels)


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Extend images by their edge pixels to a multiple of the total stride."""
    missing = -images.shape[-1] % multiple
    return F.pad(images, (0, missing, 0, missing), mode="replicate") if missing else images


def pad_to_grid(reconstruction: Tensor, size: int, grid: int) -> Tensor:
    """Extend the PCA reconstruction of images of `size` pixels by its edges where the maps cover a larger `grid`."""
    if grid == size:
        return reconstruction
    return F.pad(enlarge(reconstruction, size), (0, grid - size, 0, grid - size), mode="replicate")


@torch.no_grad()
def scale_parameters_(layer: nn.Module, factor: float) -> None:
    """Multiply all weights; a factor of 0 makes a layer that adds nothing yet, and still learns."""
    for parameter in layer.parameters():
        parameter.mul_(factor)


def pca_side(image_size: int, grid: int) -> int:
    """Return height and width of the PCA reconstruction as feature maps see it (see `pad_to_grid`)."""
    return working_side(image_size) if grid == image_size else grid


def covers_full_resolution(channels: int, map_size: int, image_size: int, grid: int) -> bool:
    """Return whether a feature map has room for every pixel of the PCA reconstruction, folded."""
    side = pca_side(image_size, grid)
    return map_size * fold_factor(channels, map_size, side, MAX_PCA_CHANNELS) >= side
