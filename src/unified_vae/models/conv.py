"""The standard convolutional encoder and decoder, after DCGAN (Radford et al. 2016, arXiv 1511.06434).

Two departures: GroupNorm instead of BatchNorm, which behaves the same in training, evaluation and any
micro-batch; and a linear output instead of a sigmoid, since the likelihood is a normal on pixel values.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unified_vae.config.model import ConvConfig
from unified_vae.models.blocks import PCAConditioning, ScaledLinear, norm, pad_to_grid, pad_to_multiple, stage_channels
from unified_vae.models.vae import RESIDUAL_SCALE, Decoder, Encoder


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
        self.head = ScaledLinear(widths[-1] * side * side, 2 * config.latents)

    def forward(self, images: Tensor) -> Tensor:
        """Return moments; sizes that are no multiple of the total stride are extended by their edge pixels."""
        features: Tensor = self.stages(2.0 * pad_to_multiple(images, self.multiple) - 1.0)
        return self._moments(features)


class Stage(nn.Module):
    """Doubles a feature map, conditioned on the PCA reconstruction where there is one."""

    def __init__(self, channels_in: int, channels_out: int, pca_conditioning: PCAConditioning | None) -> None:
        super().__init__()
        self.up = upsampling(channels_in, channels_out, bias=False)
        self.pca_conditioning = pca_conditioning
        self.norm = norm(channels_out)

    def forward(self, features: Tensor, reconstruction: Tensor | None) -> Tensor:
        """Map [batch, channels_in, size, size] to [batch, channels_out, 2 * size, 2 * size]."""
        larger: Tensor = self.up(features)
        if self.pca_conditioning is not None and reconstruction is not None:
            larger = larger + self.pca_conditioning(reconstruction, larger.shape[-1])
        return F.silu(self.norm(larger))


class ConvDecoder(Decoder):
    """One linear layer, then transposed convolutions up to the image.

    With a PCA skip, each map but the first is conditioned on the PCA reconstruction, folded to the map's size: the
    network then restores an image instead of inventing one (0.9 dB after 84 steps where it stood still without;
    docs/log.md).
    """

    def __init__(self, config: ConvConfig, channels: int) -> None:
        super().__init__()
        widths = stage_channels(config)[::-1]
        self.size = config.image_size
        self.width = widths[0]
        self.side = math.ceil(config.image_size / 2 ** len(widths))
        self.head = nn.Linear(config.latents, self.width * self.side * self.side)
        self.norm = norm(self.width)
        self.grid = self.side * 2 ** len(widths)
        stages = []
        for number, (before, after) in enumerate(pairwise(widths), start=1):
            conditioning = None
            if config.pca_init:
                conditioning = PCAConditioning(channels, self.side * 2**number, self.size, self.grid, after)
            stages.append(Stage(before, after, conditioning))
        self.stages = nn.ModuleList(stages)
        self.conv_out = upsampling(widths[-1], channels, bias=True)
        self.register_buffer("residual_scale", torch.tensor(RESIDUAL_SCALE))

    def forward(self, latents: Tensor, reconstruction: Tensor | None = None) -> Tensor:
        """Return the residual; sizes that are no multiple of the total stride are cut out of the next larger one."""
        features = F.silu(self.norm(self.head(latents).unflatten(1, (self.width, self.side, self.side))))
        padded = None if reconstruction is None else pad_to_grid(reconstruction, self.size, self.grid)
        for stage in self.stages:
            features = stage(features, padded)
        residual: Tensor = self.residual_scale * self.conv_out(features)
        return residual[..., : self.size, : self.size]
