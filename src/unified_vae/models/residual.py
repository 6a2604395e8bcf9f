"""A residual encoder and decoder that change size by moving pixels into channels and back.

Each change of size has a shortcut without weights: averaged groups of channels on the way down, repeated ones on
the way up (DC-AE, arXiv 2410.10733, sections 3.1 and 3.2). Between them are residual blocks of two 3x3 convolutions
with GroupNorm before each, the second of which starts at zero (Goyal et al. 2017, arXiv 1706.02677, section 5.1), so
that every block starts as the identity. There are no transposed convolutions, hence no checkerboard.

Blocks are spent where they bring most in the same time: at the decoder's first map that covers the PCA reconstruction
at full resolution and restores it, as networks for super-resolution do before they enlarge (EDSR, Lim et al. 2017,
arXiv 1707.02921), and not at coarser maps, at larger ones or in the encoder (docs/log.md has the comparisons). The same
blocks, in front of the PCA skip and at its size, preprocess images for it (`PreEncoder`).
"""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from unified_vae.config.model import ResidualConfig
from unified_vae.core.linear_vae import shrink, working_side
from unified_vae.models.autoencoder_kl import Attention, norm_groups
from unified_vae.models.blocks import (
    PCAConditioning,
    VectorDecoder,
    VectorEncoder,
    condition,
    covers_full_resolution,
    norm,
    pad_to_multiple,
    scale_parameters_,
    stage_channels,
)
from unified_vae.models.vae import RESIDUAL_INIT_SCALE, ScaledLinear

CONDITIONING_INIT_SCALE = 4.0
"""Of the usual first weights, for PCA conditioning at the stage with the refinement blocks; 12 was no better."""
BOTTLENECK_CHANNELS = 16
"""Of the smallest map beside a PCA skip: with 256, the dense layers memorize images (docs/log.md)."""


class Block(nn.Module):
    """x + f(x), f of two convolutions; starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, 1, 1)
        self.second = nn.Conv2d(channels, channels, 3, 1, 1)
        self.norms = nn.ModuleList([norm(channels), norm(channels)])
        nn.init.zeros_(self.second.weight)
        if self.second.bias is not None:
            nn.init.zeros_(self.second.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Map [batch, channels, size, size], the same out."""
        inner = self.first(F.silu(self.norms[0](features)))
        changed: Tensor = features + self.second(F.silu(self.norms[1](inner)))
        return changed


class ResidualAttention(Attention):
    """x + attention(x) between all positions of a map; starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, norm_groups(channels))
        for parameter in self.to_out.parameters():
            nn.init.zeros_(parameter)


def bottleneck_channels(config: ResidualConfig, width: int) -> int:
    """Return the channels between the dense layers and the smallest map, which has `width` channels."""
    default = BOTTLENECK_CHANNELS if config.pca_init else width
    return min(config.bottleneck_channels or default, width)


def blocks(channels: int, count: int) -> nn.Sequential:
    """Build a row of blocks."""
    return nn.Sequential(*[Block(channels) for _ in range(count)])


def _attention(channels: int, config: ResidualConfig) -> list[nn.Module]:
    return [ResidualAttention(channels)] if config.attention else []


class PreEncoder(nn.Module):
    """Learned preprocessing x + f(x) of the images that the PCA skip encodes, so that its components carry more.

    A network that restores an image from few numbers can read in them what a linear map has no room for, if another
    network has written it there: so learned downscaling beats bicubic downscaling by decibels once images are enlarged
    again (Kim et al. 2018, ECCV, "Task-aware image downscaling"; Sun & Chen 2020, arXiv 1907.12904). Convolutions apply
    the same weights at every position of every image, so a few hundred images teach them; a dense layer, the decoder's
    above all, memorizes so few (docs/log.md). Starts as the identity.
    """

    def __init__(self, channels: int, width: int, count: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.conv_in = nn.Conv2d(4 * channels, width, 3, 1, 1)
        self.blocks = blocks(width, count)
        self.norm = norm(width)
        self.conv_out = nn.Conv2d(width, 4 * channels, 3, 1, 1)
        scale_parameters_(self.conv_in, CONDITIONING_INIT_SCALE)
        scale_parameters_(self.conv_out, 0.0)

    def forward(self, images: Tensor) -> Tensor:
        """Map [batch, channels, size, size] in [0, 1] to [batch, channels, side, side], and a little beyond."""
        small = shrink(images.float(), self.side)  # as the PCA skip, which is float32 in any model
        folded = F.pixel_unshuffle(2.0 * pad_to_multiple(small, 2) - 1.0, 2)
        features = self.blocks(self.conv_in(folded.to(images.dtype)))
        change = RESIDUAL_INIT_SCALE * F.pixel_shuffle(self.conv_out(F.silu(self.norm(features))), 2)
        return small + change[..., : self.side, : self.side].float()


class Down(nn.Module):
    """Halves a map: a convolution whose pixels become channels, beside averaged groups of the map's own."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        if channels_out % 4 or (4 * channels_in) % channels_out:
            raise ValueError(f"{channels_in} channels cannot be folded into {channels_out}")
        self.mix = nn.Conv2d(channels_in, channels_out // 4, 3, 1, 1)
        self.channels_out = channels_out

    def forward(self, features: Tensor) -> Tensor:
        """Map [batch, channels_in, size, size] to [batch, channels_out, size / 2, size / 2]."""
        folded = F.pixel_unshuffle(features, 2)
        average = folded.unflatten(1, (self.channels_out, -1)).mean(2)
        return F.pixel_unshuffle(self.mix(features), 2) + average


class Up(nn.Module):
    """Doubles a map: a convolution whose channels become pixels, beside repeated channels of the map's own."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        if (4 * channels_out) % channels_in:
            raise ValueError(f"{channels_in} channels cannot be spread over {channels_out}")
        self.mix = nn.Conv2d(channels_in, 4 * channels_out, 3, 1, 1)
        self.repeats = 4 * channels_out // channels_in

    def forward(self, features: Tensor) -> Tensor:
        """Map [batch, channels_in, size, size] to [batch, channels_out, 2 * size, 2 * size]."""
        repeated = features.repeat_interleave(self.repeats, dim=1)
        return F.pixel_shuffle(self.mix(features) + repeated, 2)


class ResidualEncoder(VectorEncoder):
    """Pixels into channels, then blocks and halvings down to a small map, then one linear layer."""

    def __init__(self, config: ResidualConfig, channels: int) -> None:
        super().__init__()
        widths = stage_channels(config)
        layers: list[nn.Module] = [nn.PixelUnshuffle(2), nn.Conv2d(4 * channels, widths[0], 3, 1, 1)]
        layers.append(blocks(widths[0], config.blocks))
        for before, after in pairwise(widths):
            layers += [Down(before, after), blocks(after, config.blocks)]
        layers += _attention(widths[-1], config)
        width = bottleneck_channels(config, widths[-1])
        if width != widths[-1]:
            layers.append(nn.Conv2d(widths[-1], width, 1))
        self.stages = nn.Sequential(*layers, norm(width), nn.SiLU())
        self.multiple = 2 ** len(widths)
        side = math.ceil(config.image_size / self.multiple)
        self.head = ScaledLinear(width * side * side, 2 * config.latents)
        self.pre_encoder = None
        if config.pca_init and config.pre_encoder_blocks > 0:
            size = config.image_size if config.refine_resolution == "full" else working_side(config.image_size)
            self.pre_encoder = PreEncoder(channels, widths[0], config.pre_encoder_blocks, size)

    def preprocess(self, images: Tensor) -> Tensor:
        """See `Encoder.preprocess`."""
        return images if self.pre_encoder is None else self.pre_encoder(images)


class Stage(nn.Module):
    """Doubles a feature map, conditioned on the PCA reconstruction where there is one, and refines it."""

    def __init__(
        self, channels_in: int, channels_out: int, count: int, pca_conditioning: PCAConditioning | None
    ) -> None:
        super().__init__()
        self.up = Up(channels_in, channels_out)
        self.pca_conditioning = pca_conditioning
        self.refine = blocks(channels_out, count)

    def forward(self, features: Tensor, reconstruction: Tensor | None) -> Tensor:
        """Map [batch, channels_in, size, size] to [batch, channels_out, 2 * size, 2 * size]."""
        refined: Tensor = self.refine(condition(self.up(features), self.pca_conditioning, reconstruction))
        return refined


class ResidualDecoder(VectorDecoder):
    """One linear layer, then doublings and blocks up to half the image's size, whose channels become its pixels.

    Attributes:
        refine_stage: number of the map, from the smallest, that has the refinement blocks.
    """

    def __init__(self, config: ResidualConfig, channels: int) -> None:
        widths = stage_channels(config)[::-1]
        super().__init__(config, bottleneck_channels(config, widths[0]))
        self.bottleneck = nn.Identity() if self.width == widths[0] else nn.Conv2d(self.width, widths[0], 1)

        # Refine at the finest map, or at the first of about half of the PCA reconstruction's size that covers it
        finest = len(widths) - 1
        halvings = round(math.log2(self.size / working_side(self.size)))
        smaller = range(max(finest - halvings, 0), finest) if config.refine_resolution != "full" else range(0)
        covering = (n for n in smaller if covers_full_resolution(channels, self.side * 2**n, self.size, self.grid))
        self.refine_stage = next(covering, finest) if config.pca_init else finest
        counts = [config.blocks] * len(widths)
        counts[self.refine_stage] = config.refine_blocks
        self.refine = nn.Sequential(*_attention(widths[0], config), *blocks(widths[0], counts[0]))
        self.stages = nn.ModuleList(
            Stage(before, after, counts[number], self.conditioning(config, channels, number, after))
            for number, (before, after) in enumerate(pairwise(widths), start=1)
        )
        self.norm = norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 4 * channels, 3, 1, 1)

    def forward(self, latents: Tensor, reconstruction: Tensor | None = None) -> Tensor:
        """Return the residual; sizes that are no multiple of the total stride are cut out of the next larger one."""
        small = self.head(latents).unflatten(1, (self.width, self.side, self.side))
        features = self.run_stages(self.refine(self.bottleneck(small)), reconstruction)
        residual: Tensor = self.residual_scale * F.pixel_shuffle(self.conv_out(F.silu(self.norm(features))), 2)
        return residual[..., : self.size, : self.size]

    def reset_residual_branch(self, active: int) -> None:
        """See `Decoder.reset_residual_branch`; only the PCA reconstruction, at the refinement stage, is read at first.

        The shortcuts carry what coarse maps hold to the larger ones: at first random mixtures of latents and of coarse
        versions of the PCA reconstruction, which would hide its detail (docs/log.md has what each change brought).
        """
        super().reset_residual_branch(active)
        nn.init.zeros_(self.head.weight[:, :active])
        if active == self.head.in_features:
            nn.init.zeros_(self.head.bias)
            if isinstance(self.bottleneck, nn.Conv2d) and self.bottleneck.bias is not None:
                nn.init.zeros_(self.bottleneck.bias)
        for number, stage in enumerate(self.stages, start=1):
            if isinstance(stage, Stage) and stage.pca_conditioning is not None:
                factor = CONDITIONING_INIT_SCALE if number == self.refine_stage else 0.0
                scale_parameters_(stage.pca_conditioning, factor)
