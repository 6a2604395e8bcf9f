"""The KL autoencoder of latent diffusion (Rombach et al. 2022, arXiv 2112.10752): a map of latents, f4, f8 or f16.

Encoder and decoder are those of AutoencoderKL in diffusers, on pixels in [-1, 1] as there, with the same names of
parameters; `foreign_name` has the two exceptions. To the rest of this project the map is a vector: channel by channel,
row by row. There is no linear path and no layer that starts at zero: the net starts as it does there.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unified_vae.config.model import SpatialConfig
from unified_vae.core.precision import full_precision
from unified_vae.models.spatial_blocks import DownBlock, MidBlock, UpBlock, in_turn, norm, norm_groups
from unified_vae.models.vae import Decoder, Encoder


def foreign_name(name: str) -> str:
    """What AutoencoderKL of diffusers calls one of this model's tensors."""
    _, _, rest = name.partition(".")
    return rest if rest.startswith(("quant_conv.", "post_quant_conv.")) else name


class SpatialEncoder(Encoder):
    """Residual blocks and halvings down to the map's size, then the moments of each position."""

    def __init__(self, config: SpatialConfig, channels: int) -> None:
        super().__init__()
        widths, groups = config.widths, norm_groups(config.base_channels)
        self.map = (config.latent_channels, config.side, config.side)
        self.conv_in = nn.Conv2d(channels, widths[0], 3, 1, 1)
        self.down_blocks = nn.ModuleList(
            DownBlock(before, after, config.layers_per_block, groups, halve=number < len(widths))
            for number, (before, after) in enumerate(pairwise((widths[0], *widths)), start=1)
        )
        self.mid_block = MidBlock(widths[-1], groups, config.attention)
        self.conv_norm_out = norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, 1, 1)
        moments = 2 * config.latent_channels
        self.quant_conv = nn.Conv2d(moments, moments, 1) if config.quant_convs else None

    def forward(self, images: Tensor) -> Tensor:
        """See `Encoder`; the moments are float32 whatever the precision before them."""
        features = in_turn(self.down_blocks, self.conv_in(2.0 * images - 1.0))
        features = F.silu(self.conv_norm_out(self.mid_block(features)))
        with full_precision(images.device):  # the posterior is float32 (objective.md)
            moments: Tensor = self.conv_out(features.to(self.conv_out.weight.dtype))
            if self.quant_conv is not None:
                moments = self.quant_conv(moments)
        return moments.flatten(1)

    @torch.no_grad()
    def replace_units(self, which: Tensor, donor: Encoder) -> None:
        """See `Encoder.replace_units`: the channels all of whose units are meant."""
        assert isinstance(donor, SpatialEncoder)
        channels = whole_channels(which, self.map)
        rows = torch.cat([channels, channels])
        own, other = self.quant_conv or self.conv_out, donor.quant_conv or donor.conv_out
        own.weight[rows] = other.weight.to(own.weight)[rows]
        assert own.bias is not None and other.bias is not None
        own.bias[rows] = other.bias.to(own.bias)[rows]


class SpatialDecoder(Decoder):
    """Residual blocks and doublings from the latents' size up to the images'."""

    def __init__(self, config: SpatialConfig, channels: int) -> None:
        super().__init__()
        widths, groups = config.widths[::-1], norm_groups(config.base_channels)
        self.map = (config.latent_channels, config.side, config.side)
        latent_channels = config.latent_channels
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1) if config.quant_convs else None
        self.conv_in = nn.Conv2d(latent_channels, widths[0], 3, 1, 1)
        self.mid_block = MidBlock(widths[0], groups, config.attention)
        self.up_blocks = nn.ModuleList(
            UpBlock(before, after, config.layers_per_block + 1, groups, double=number < len(widths))
            for number, (before, after) in enumerate(pairwise((widths[0], *widths)), start=1)
        )
        self.conv_norm_out = norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], channels, 3, 1, 1)

    def forward(self, latents: Tensor, picture: Tensor | None = None) -> Tensor:
        """See `Decoder`. The net answers on [-1, 1]; half of that is what is added to grey."""
        features = latents.unflatten(1, self.map)
        if self.post_quant_conv is not None:
            features = self.post_quant_conv(features)
        features = in_turn(self.up_blocks, self.mid_block(self.conv_in(features)))
        detail: Tensor = 0.5 * self.conv_out(F.silu(self.conv_norm_out(features)))
        return detail

    @torch.no_grad()
    def replace_units(self, which: Tensor, donor: Decoder) -> None:
        """See `Decoder.replace_units`: the channels all of whose units are meant."""
        assert isinstance(donor, SpatialDecoder)
        channels = whole_channels(which, self.map)
        own, other = self.post_quant_conv or self.conv_in, donor.post_quant_conv or donor.conv_in
        own.weight[:, channels] = other.weight.to(own.weight)[:, channels]


def whole_channels(which: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """[latent_channels], bool: the channels of a map [channels, height, width] all of whose units are in `which`."""
    return which.view(shape).flatten(1).all(1)
