"""The blocks of the KL autoencoder of latent diffusion (Rombach et al. 2022, arXiv 2112.10752, appendix E.1 and E.2).

The computation and the names of parameters are those of AutoencoderKL in diffusers: DownEncoderBlock2D,
UNetMidBlock2D with one head of attention, UpDecoderBlock2D. So weights go from one to the other as they are. In
training alone, doublings are computed in a cheaper way that differs by rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOST_GROUPS = 32
EPSILON = 1e-6  # of the norms; torch's own is 1e-5
LARGEST_UPSAMPLED = 2**31  # values, from which on torch cannot repeat pixels channels-last (pytorch issue 141831)


def norm_groups(base_channels: int) -> int:
    """Groups of every norm of a network: the same number, so it has to divide the fewest channels."""
    return math.gcd(MOST_GROUPS, base_channels)


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
        """[batch, channels_in, size, size] -> [batch, channels_out, size, size]."""
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
        seen = self.to_out[0](F.scaled_dot_product_attention(query, key, value)[:, 0])
        # in this order: the sum takes the layout of its first part, as there, so that results agree to the last bit
        return seen.transpose(1, 2).unflatten(2, features.shape[2:]) + features


class MidBlock(nn.Module):
    """Two residual blocks at the smallest size, with attention between them or without."""

    def __init__(self, channels: int, groups: int, attention: bool) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([Attention(channels, groups)] if attention else [])
        self.resnets = nn.ModuleList([ResnetBlock(channels, channels, groups) for _ in range(2)])

    def forward(self, features: Tensor) -> Tensor:
        """[batch, channels, size, size], the same out."""
        first, second = self.resnets
        result: Tensor = second(in_turn(self.attentions, first(features)))
        return result


class Downsampler(nn.Module):
    """Halves a map by a convolution of stride 2, with a row and a column of zeros at its far edges only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, 2)

    def forward(self, features: Tensor) -> Tensor:
        """[batch, channels, size, size] -> [batch, channels, size / 2, size / 2]."""
        halved: Tensor = self.conv(F.pad(features, (0, 1, 0, 1)))
        return halved


def doubling_kernel(weight: Tensor) -> Tensor:
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

    In training both are one transposed convolution (see `doubling_kernel`), in half of the time. Otherwise they are
    computed as in diffusers, so that a model and its exported folder agree to the last bit.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        """[batch, channels, size, size] -> [batch, channels, 2 * size, 2 * size]."""
        if self.training:
            kernel = doubling_kernel(self.conv.weight)
            return F.conv_transpose2d(features, kernel, self.conv.bias, stride=2, padding=1)
        if not torch.compiler.is_compiling() and 4 * features.numel() >= LARGEST_UPSAMPLED:  # a graph is of any batch
            features = features.contiguous()
        doubled: Tensor = self.conv(F.interpolate(features, scale_factor=2.0, mode="nearest"))
        return doubled


class DownBlock(nn.Module):
    """Residual blocks at one size, then a halving."""

    def __init__(self, channels_in: int, channels_out: int, layers: int, groups: int, halve: bool) -> None:
        super().__init__()
        self.resnets = row(channels_in, channels_out, layers, groups)
        self.downsamplers = nn.ModuleList([Downsampler(channels_out)] if halve else [])

    def forward(self, features: Tensor) -> Tensor:
        """[batch, channels_in, size, size] -> [batch, channels_out, size / 2, size / 2], or of the same size."""
        return in_turn(self.downsamplers, in_turn(self.resnets, features))


class UpBlock(nn.Module):
    """Residual blocks at one size, then a doubling."""

    def __init__(self, channels_in: int, channels_out: int, layers: int, groups: int, double: bool) -> None:
        super().__init__()
        self.resnets = row(channels_in, channels_out, layers, groups)
        self.upsamplers = nn.ModuleList([Upsampler(channels_out)] if double else [])

    def forward(self, features: Tensor) -> Tensor:
        """[batch, channels_in, size, size] -> [batch, channels_out, 2 * size, 2 * size], or of the same size."""
        return in_turn(self.upsamplers, in_turn(self.resnets, features))


def row(channels_in: int, channels_out: int, layers: int, groups: int) -> nn.ModuleList:
    """So many residual blocks, the first of which changes the number of channels."""
    widths = [channels_in, *[channels_out] * layers]
    return nn.ModuleList([ResnetBlock(before, channels_out, groups) for before in widths[:-1]])


def in_turn(modules: Iterable[nn.Module], features: Tensor) -> Tensor:
    """What one module after the other makes of a map."""
    for module in modules:
        features = module(features)
    return features
