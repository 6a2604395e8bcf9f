"""What the families with a vector of latents share: widths, norms, padding, PCA conditioning, encoder and decoder."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unified_vae.config.model import VectorConfig
from unified_vae.core.device import full_precision
from unified_vae.core.linear_vae import enlarge, working_side
from unified_vae.models.pca_skip import fold_factor, fold_to_size
from unified_vae.models.vae import RESIDUAL_SCALE, Decoder, Encoder

MIN_MAP_SIZE = 4  # pixels along a side that the smallest feature map has at least
MAX_PCA_CHANNELS = 48  # of the PCA reconstruction as a feature map sees it: RGB folded by 4


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


class VectorEncoder(Encoder):
    """`stages` from the images down to a small map, then `head`.

    Attributes:
        multiple: the total stride.
    """

    stages: nn.Sequential
    multiple: int

    def forward(self, images: Tensor) -> Tensor:
        """Return moments; sizes that are no multiple of the total stride are extended by their edge pixels."""
        features: Tensor = self.stages(2.0 * pad_to_multiple(images, self.multiple) - 1.0)
        with full_precision(features.device):  # the posterior is exact (objective.md)
            moments: Tensor = self.head(features.float().flatten(1))
        return moments


class VectorDecoder(Decoder):
    """`head` to a small map, then `stages` that double it, up to the image.

    With a PCA skip, each map but the first is conditioned on the PCA reconstruction, folded to the map's size: the
    network then restores an image instead of inventing one (0.9 dB after 84 steps where it stood still without;
    docs/log.md).

    Attributes:
        size: height and width of the images.
        width, side: channels, and height and width, of the small map.
        grid: height and width that the stages lead to, `size` or a little more.
    """

    stages: nn.ModuleList

    def __init__(self, config: VectorConfig, width: int) -> None:
        super().__init__()
        doublings = len(stage_channels(config))
        self.size = config.image_size
        self.width = width
        self.side = math.ceil(config.image_size / 2**doublings)
        self.grid = self.side * 2**doublings
        self.head = nn.Linear(config.latents, width * self.side * self.side)
        self.register_buffer("residual_scale", torch.tensor(RESIDUAL_SCALE))

    def conditioning(self, config: VectorConfig, channels: int, stage: int, width: int) -> PCAConditioning | None:
        """Build the PCA conditioning of the stage of a number, from 1 on, with `width` channels."""
        if not config.pca_init:
            return None
        return PCAConditioning(channels, self.side * 2**stage, self.size, self.grid, width)

    def run_stages(self, features: Tensor, reconstruction: Tensor | None) -> Tensor:
        """Apply the stages, each of which takes features and the padded PCA reconstruction."""
        padded = None if reconstruction is None else pad_to_grid(reconstruction, self.size, self.grid)
        for stage in self.stages:
            features = stage(features, padded)
        return features


def condition(features: Tensor, conditioning: PCAConditioning | None, reconstruction: Tensor | None) -> Tensor:
    """Add the PCA conditioning to a feature map, where there is one."""
    if conditioning is None or reconstruction is None:
        return features
    return features + conditioning(reconstruction, features.shape[-1])


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
