"""The plain convolutional encoder and decoder of the trade, after DCGAN (Radford et al. 2016, arXiv 1511.06434).

Two departures: GroupNorm instead of BatchNorm, which behaves the same in training, evaluation and any
micro-batch; and a linear output instead of a sigmoid, since the likelihood is a normal on pixel values.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unified_vae.models.config import ConvConfig
from unified_vae.models.vae import Decoder, Encoder

SMALLEST_MAP = 4  # pixels a side that the last feature map has at least


def halvings(image_size: int) -> int:
    """How often an image is halved before the latents: as often as leaves SMALLEST_MAP pixels a side."""
    return max(1, int(math.log2(image_size / SMALLEST_MAP)))


def stage_channels(config: ConvConfig) -> list[int]:
    """Channels after each halving: doubling from `base_channels`, bounded by `max_multiplier`."""
    return [config.base_channels * min(2**stage, config.max_multiplier) for stage in range(halvings(config.image_size))]


def norm(channels: int) -> nn.GroupNorm:
    """GroupNorm (Wu & He 2018) with 32 groups, or the largest number of groups that divides the channels."""
    return nn.GroupNorm(math.gcd(32, channels), channels)


def upsampling(channels_in: int, channels_out: int, bias: bool) -> nn.ConvTranspose2d:
    """A transposed convolution that doubles the size, and starts as bilinear interpolation of mixed channels.

    With the usual independent weights the four output phases differ from the first step on, which shows as a
    checkerboard (Odena et al. 2016, Distill) until training has levelled them; here they start equal.
    """
    layer = nn.ConvTranspose2d(channels_in, channels_out, 4, 2, 1, bias=bias)
    line = torch.tensor([0.25, 0.75, 0.75, 0.25])
    mix = torch.empty(channels_in, channels_out, 1, 1)
    nn.init.normal_(mix, std=channels_in**-0.5)
    with torch.no_grad():
        layer.weight.copy_(mix * line[:, None] * line[None, :])
    return layer


class ConvEncoder(Encoder):
    """Stride-2 convolutions down to a small map, then one linear layer."""

    def __init__(self, config: ConvConfig, channels: int) -> None:
        super().__init__()
        widths = stage_channels(config)
        layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 4, 2, 1), nn.SiLU()]
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 4, 2, 1, bias=False), norm(after), nn.SiLU()]
        self.stages = nn.Sequential(*layers)
        self.multiple = 2 ** len(widths)
        side = math.ceil(config.image_size / self.multiple)
        self.head = nn.Linear(widths[-1] * side * side, 2 * config.latents)

    def forward(self, images: Tensor) -> Tensor:
        """Sizes that are no multiple of the total stride are extended by their edge pixels."""
        missing = -images.shape[-1] % self.multiple
        if missing:
            images = F.pad(images, (0, missing, 0, missing), mode="replicate")
        features: Tensor = self.stages(2.0 * images - 1.0)
        with torch.autocast(images.device.type, enabled=False):  # the posterior is float32 (objective.md)
            moments: Tensor = self.head(features.float().flatten(1))
        return moments


class ConvDecoder(Decoder):
    """One linear layer, then transposed convolutions up to the image."""

    def __init__(self, config: ConvConfig, channels: int) -> None:
        super().__init__()
        widths = stage_channels(config)[::-1]
        self.size = config.image_size
        self.width = widths[0]
        self.side = math.ceil(config.image_size / 2 ** len(widths))
        self.head = nn.Linear(config.latents, self.width * self.side * self.side)
        layers: list[nn.Module] = [norm(self.width), nn.SiLU()]
        for before, after in pairwise(widths):
            layers += [upsampling(before, after, bias=False), norm(after), nn.SiLU()]
        layers.append(upsampling(widths[-1], channels, bias=True))
        self.stages = nn.Sequential(*layers)

    def forward(self, latents: Tensor) -> Tensor:
        """Sizes that are no multiple of the total stride are cut out of the next larger one."""
        features = self.head(latents).unflatten(1, (self.width, self.side, self.side))
        images: Tensor = 0.5 + 0.5 * self.stages(features)
        return images[..., : self.size, : self.size]
