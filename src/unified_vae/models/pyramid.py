"""The pyramid of maps that the model families share: sizes, widths, and how a map sees the linear path's picture."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unified_vae.config.model import VectorConfig
from unified_vae.core.principal_components import enlarge, working_side
from unified_vae.models.linear_path import at_size, folding

SMALLEST_MAP = 4  # pixels a side that the last feature map has at least
MOST_PICTURE_CHANNELS = 48  # of the linear path's picture as a map sees it: RGB folded by 4


def halvings(image_size: int) -> int:
    """How often an image is halved before the latents: as often as leaves SMALLEST_MAP pixels a side."""
    return max(1, int(math.log2(image_size / SMALLEST_MAP)))


def stage_channels(config: VectorConfig) -> list[int]:
    """Channels after each halving: doubling from `base_channels`, bounded by `max_multiplier`."""
    return [config.base_channels * min(2**stage, config.max_multiplier) for stage in range(halvings(config.image_size))]


def norm(channels: int) -> nn.GroupNorm:
    """GroupNorm (Wu & He 2018) with 32 groups, or the largest number of groups that divides the channels."""
    return nn.GroupNorm(math.gcd(32, channels), channels)


def to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Images whose size is a multiple of the total stride: extended by their edge pixels where it is not."""
    missing = -images.shape[-1] % multiple
    return F.pad(images, (0, missing, 0, missing), mode="replicate") if missing else images


def in_frame(picture: Tensor, size: int, frame: int) -> Tensor:
    """A picture of images of `size` pixels, extended by its edges where the maps are of a larger `frame`."""
    if frame == size:
        return picture
    return F.pad(enlarge(picture, size), (0, frame - size, 0, frame - size), mode="replicate")


@torch.no_grad()
def amplify(layer: nn.Module, gain: float) -> None:
    """Multiply all weights; 0 is a layer that does nothing yet, and still learns to."""
    for parameter in layer.parameters():
        parameter.mul_(gain)


def picture_side(image_size: int, frame: int) -> int:
    """Height and width of the linear path's picture as maps see it (see `in_frame`)."""
    return working_side(image_size) if frame == image_size else frame


def sees_all(channels: int, map_size: int, image_size: int, frame: int) -> bool:
    """Whether a map has room for every pixel of the picture, folded."""
    side = picture_side(image_size, frame)
    return map_size * folding(channels, map_size, side, MOST_PICTURE_CHANNELS) >= side


class Look(nn.Module):
    """What a map sees of the linear path's picture: details folded into channels, then a convolution."""

    def __init__(self, channels: int, map_size: int, image_size: int, frame: int, channels_out: int) -> None:
        super().__init__()
        side = picture_side(image_size, frame)
        seen = channels * folding(channels, map_size, side, MOST_PICTURE_CHANNELS) ** 2
        self.mix = nn.Conv2d(seen, channels_out, 3, 1, 1)

    def forward(self, picture: Tensor, map_size: int) -> Tensor:
        """[batch, channels, side, side] -> [batch, channels_out, map_size, map_size]."""
        features: Tensor = self.mix(at_size(2.0 * picture - 1.0, map_size, MOST_PICTURE_CHANNELS))
        return features
