"""The KL autoencoder of latent diffusion (Rombach et al. 2022, arXiv 2112.10752): a map of latents, f4, f8 or f16.

Computation and names of parameters are those of AutoencoderKL in diffusers (DownEncoderBlock2D, UNetMidBlock2D with one
attention head, UpDecoderBlock2D), on pixels in [-1, 1] as there, so that weights go from one to the other;
`diffusers_key` has the two exceptions. In training alone, upsampling is computed in a cheaper way that differs by
rounding. To the rest of this project the map is a vector: channel by channel, row by row. There is no PCA skip and no
layer that starts at zero: weights are initialized as there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unified_vae.config.model import SpatialConfig
from unified_vae.core.device import full_precision
from unified_vae.models.vae import Decoder, Encoder

MAX_GROUPS = 32
EPSILON = 1e-6  # of the norms; torch's own is 1e-5
MAX_UPSAMPLED = 2**31  # values, from which on torch cannot repeat pixels channels-last (pytorch issue 141831)


def norm_groups(base_channels: int) -> int:
    """Return the groups of every norm of a network: the same number, so it has to divide the fewest channels."""
    return math.gcd(MAX_GROUPS, base_channels)


def norm(channels: int, groups: int) -> nn.GroupNorm:
    """GroupNorm (Wu & He 2018) with this network's epsilon."""
    return nn.GroupNorm(groups, channels, eps=EPSILON)


class ResnetBlock(nn.Module):
    """Norm, SiLU and 3x3 convolution, twice; added to the input, which a 1x1 convolution widens where needed."""

    def __init__(self, channels_in: int, channels_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = norm(channels_in, groups)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, 1, 1)
        self.norm2 = norm(channels_out, groups)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1)
        self.conv_shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else None

    def forward(self, features: Tensor) -> Tensor:
        """Map [batch, channels_in, size, size] to [batch, channels_out, size, size]."""
        inner = self.conv1(F.silu(self.norm1(features)))
        inner = self.conv2(F.silu(self.norm2(inner)))
        if self.conv_shortcut is not None:
            features = self.conv_shortcut(features)
        return features + inner


class Attention(nn.Module):
    """One head of attention between all positions of a map, added to the map."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = norm(channels, groups)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, features: Tensor) -> Tensor:
        """[batch, channels, height, width], the same out."""
        positions = self.group_norm(features.flatten(2)).transpose(1, 2)
        query, key, value = (part(positions)[:, None] for part in (self.to_q, self.to_k, self.to_v))
        attended = self.to_out[0](F.scaled_dot_product_attention(query, key, value)[:, 0])
        # in this order: the sum takes the layout of its first part, as there, so that results agree to the last bit
        return attended.transpose(1, 2).unflatten(2, features.shape[2:]) + features


class MidBlock(nn.Module):
    """Two residual blocks at the smallest size, with attention between them or without."""

    def __init__(self, channels: int, groups: int, attention: bool) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([Attention(channels, groups)] if attention else [])
        self.resnets = nn.ModuleList([ResnetBlock(channels, channels, groups) for _ in range(2)])

    def forward(self, features: Tensor) -> Tensor:
        """[batch, channels, size, size], the same out."""
        first, second = self.resnets
        result: Tensor = second(apply_all(self.attentions, first(features)))
        return result


class Downsampler(nn.Module):
    """Halves a map by a convolution of stride 2, with a row and a column of zeros at its far edges only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, 2)

    def forward(self, features: Tensor) -> Tensor:
        """Map [batch, channels, size, size] to [batch, channels, size / 2, size / 2]."""
        halved: Tensor = self.conv(F.pad(features, (0, 1, 0, 1)))
        return halved


def upsampling_kernel(weight: Tensor) -> Tensor:
    """The kernel of a transposed convolution of stride 2 that equals repeating each pixel, then a 3x3 convolution.

    Along one side, with taps (a, b, c), an output pixel of even number 2i sees x[i-1], x[i] and x[i], one of odd number
    x[i], x[i] and x[i+1]: a x[i-1] + (b + c) x[i], and (a + b) x[i] + c x[i+1]. So 16 taps serve four output pixels,
    where 36 did, and the repeated pixels are never written. The weights are added up in float32.

    Args:
        weight: [channels_out, channels_in, 3, 3].

    Returns:
        [channels_in, channels_out, 4, 4].
    """
    kernel = weight.transpose(0, 1).to(torch.promote_types(weight.dtype, torch.float32))
    for side in (2, 3):
        a, b, c = kernel.unbind(side)
        kernel = torch.stack([c, b + c, a + b, a], side)
    return kernel.to(weight.dtype)


class Upsampler(nn.Module):
    """Doubles a map by repeating its pixels, then a convolution.

    In training both are one transposed convolution (see `upsampling_kernel`), in half of the time. Otherwise they are
    computed as in diffusers, so that a model and its exported folder agree to the last bit.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Map [batch, channels, size, size] to [batch, channels, 2 * size, 2 * size]."""
        if self.training:
            kernel = upsampling_kernel(self.conv.weight)
            return F.conv_transpose2d(features, kernel, self.conv.bias, stride=2, padding=1)
        if not torch.compiler.is_compiling() and 4 * features.numel() >= MAX_UPSAMPLED:  # a graph is of any batch
            features = features.contiguous()
        doubled: Tensor = self.conv(F.interpolate(features, scale_factor=2.0, mode="nearest"))
        return doubled


class DownBlock(nn.Module):
    """Residual blocks at one size, then a halving."""

    def __init__(self, channels_in: int, channels_out: int, layers: int, groups: int, halve: bool) -> None:
        super().__init__()
        self.resnets = resnet_row(channels_in, channels_out, layers, groups)
        self.downsamplers = nn.ModuleList([Downsampler(channels_out)] if halve else [])

    def forward(self, features: Tensor) -> Tensor:
        """Map [batch, channels_in, size, size] to [batch, channels_out, size / 2, size / 2], or of the same size."""
        return apply_all(self.downsamplers, apply_all(self.resnets, features))


class UpBlock(nn.Module):
    """Residual blocks at one size, then a doubling."""

    def __init__(self, channels_in: int, channels_out: int, layers: int, groups: int, double: bool) -> None:
        super().__init__()
        self.resnets = resnet_row(channels_in, channels_out, layers, groups)
        self.upsamplers = nn.ModuleList([Upsampler(channels_out)] if double else [])

    def forward(self, features: Tensor) -> Tensor:
        """Map [batch, channels_in, size, size] to [batch, channels_out, 2 * size, 2 * size], or of the same size."""
        return apply_all(self.upsamplers, apply_all(self.resnets, features))


def resnet_row(channels_in: int, channels_out: int, layers: int, groups: int) -> nn.ModuleList:
    """Build residual blocks, the first of which changes the number of channels."""
    widths = [channels_in, *[channels_out] * layers]
    return nn.ModuleList([ResnetBlock(before, channels_out, groups) for before in widths[:-1]])


def apply_all(modules: Iterable[nn.Module], features: Tensor) -> Tensor:
    """Apply one module after the other to a feature map."""
    for module in modules:
        features = module(features)
    return features


def diffusers_key(name: str) -> str:
    """Return what AutoencoderKL of diffusers calls one of this model's tensors."""
    _, _, rest = name.partition(".")
    return rest if rest.startswith(("quant_conv.", "post_quant_conv.")) else name


class KLEncoder(Encoder):
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
        features = apply_all(self.down_blocks, self.conv_in(2.0 * images - 1.0))
        features = F.silu(self.conv_norm_out(self.mid_block(features)))
        with full_precision(images.device):  # the posterior is float32 (objective.md)
            moments: Tensor = self.conv_out(features.to(self.conv_out.weight.dtype))
            if self.quant_conv is not None:
                moments = self.quant_conv(moments)
        return moments.flatten(1)

    @torch.no_grad()
    def reinit_latent_units(self, mask: Tensor, source: Encoder) -> None:
        """See `Encoder.reinit_latent_units`: only channels all of whose units are masked."""
        assert isinstance(source, KLEncoder)
        channels = complete_channels(mask, self.map)
        rows = torch.cat([channels, channels])
        last, source_last = self.quant_conv or self.conv_out, source.quant_conv or source.conv_out
        for name, dst in last.state_dict().items():
            dst[rows] = source_last.state_dict()[name].to(dst)[rows]


class KLDecoder(Decoder):
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

    def forward(self, latents: Tensor, reconstruction: Tensor | None = None) -> Tensor:
        """See `Decoder`. The network's output is on [-1, 1]; half of that is added to gray."""
        features = latents.unflatten(1, self.map)
        if self.post_quant_conv is not None:
            features = self.post_quant_conv(features)
        features = apply_all(self.up_blocks, self.mid_block(self.conv_in(features)))
        residual: Tensor = 0.5 * self.conv_out(F.silu(self.conv_norm_out(features)))
        return residual

    @torch.no_grad()
    def reinit_latent_units(self, mask: Tensor, source: Decoder) -> None:
        """See `Decoder.reinit_latent_units`: only channels all of whose units are masked."""
        assert isinstance(source, KLDecoder)
        channels = complete_channels(mask, self.map)
        dst, src = self.post_quant_conv or self.conv_in, source.post_quant_conv or source.conv_in
        dst.weight[:, channels] = src.weight.to(dst.weight)[:, channels]


def complete_channels(mask: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return [latent_channels], bool: channels of a map [channels, height, width] all of whose units are masked."""
    return mask.view(shape).flatten(1).all(1)
