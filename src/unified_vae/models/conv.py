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
from unified_vae.models.blocks import PCAConditioning, VectorDecoder, VectorEncoder, condition, norm, stage_channels
from unified_vae.models.vae import ScaledLinear


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


class ConvEncoder(VectorEncoder):
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


class Stage(nn.Module):
    """Doubles a feature map, conditioned on the PCA reconstruction where there is one."""

    def __init__(self, channels_in: int, channels_out: int, pca_conditioning: PCAConditioning | None) -> None:
        super().__init__()
        self.up = upsampling(channels_in, channels_out, bias=False)
        self.pca_conditioning = pca_conditioning
        self.norm = norm(channels_out)

    def forward(self, features: Tensor, reconstruction: Tensor | None) -> Tensor:
        """Map [batch, channels_in, size, size] to [batch, channels_out, 2 * size, 2 * size]."""
        return F.silu(self.norm(condition(self.up(features), self.pca_conditioning, reconstruction)))


class ConvDecoder(VectorDecoder):
    """One linear layer, then transposed convolutions up to the image."""

    def __init__(self, config: ConvConfig, channels: int) -> None:
        widths = stage_channels(config)[::-1]
        super().__init__(config, widths[0])
        self.norm = norm(widths[0])
        self.stages = nn.ModuleList(
            Stage(before, after, self.conditioning(config, channels, number, after))
            for number, (before, after) in enumerate(pairwise(widths), start=1)
        )
        self.conv_out = upsampling(widths[-1], channels, bias=True)

    def forward(self, latents: Tensor, reconstruction: Tensor | None = None) -> Tensor:
        """Return the residual; sizes that are no multiple of the total stride are cut out of the next larger one."""
        features = F.silu(self.norm(self.head(latents).unflatten(1, (self.width, self.side, self.side))))
        residual: Tensor = self.residual_scale * self.conv_out(self.run_stages(features, reconstruction))
        return residual[..., : self.size, : self.size]
