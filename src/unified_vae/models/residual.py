"""A residual encoder and decoder that change size by moving pixels into channels and back.

Each change of size has a shortcut without weights: averaged groups of channels on the way down, repeated ones on
the way up (DC-AE, arXiv 2410.10733, sections 3.1 and 3.2). Between them are residual blocks of two 3x3 convolutions
with GroupNorm before each, the second of which starts at zero (Goyal et al. 2017, arXiv 1706.02677, section 5.1), so
that every block starts as the identity. There are no transposed convolutions, hence no checkerboard.

Blocks are spent where they bring most in the same time: at the decoder's first map that sees the linear path's picture
in full and restores it, as networks for super-resolution do before they enlarge (EDSR, Lim et al. 2017, arXiv
1707.02921), and not at coarser maps, at larger ones or in the encoder (docs/log.md has the comparisons). The same
blocks, in front of the linear path and at its size, prepare images for it (`Prepare`).
"""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from unified_vae.config.model import ResidualConfig
from unified_vae.core.principal_components import shrink, working_side
from unified_vae.models.gentle_linear import GentleLinear
from unified_vae.models.pyramid import Look, amplify, in_frame, norm, sees_all, stage_channels, to_multiple
from unified_vae.models.spatial_blocks import Attention, norm_groups
from unified_vae.models.vae import GENTLE_GAIN, Decoder, Encoder

DETAIL_GAIN = 4.0
"""How much stronger than usual the details' map sees the linear path's picture at first; 12 was no better."""
USUAL_NECK = 16
"""Channels that the dense layers meet beside a linear path: with 256 they learn images by heart (docs/log.md)."""


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
        """[batch, channels, size, size], the same out."""
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
    """Of the smallest map, of `width` channels, where the dense layers meet it."""
    usual = USUAL_NECK if config.pca_init else width
    return min(config.bottleneck_channels or usual, width)


def blocks(channels: int, count: int) -> nn.Sequential:
    """So many in a row."""
    return nn.Sequential(*[Block(channels) for _ in range(count)])


def _attention(channels: int, config: ResidualConfig) -> list[nn.Module]:
    return [ResidualAttention(channels)] if config.attention else []


class Prepare(nn.Module):
    """x + f(x) of whole images: what a linear map is to encode, so that its components carry more than their share.

    A network that restores a picture from few numbers can read in them what a linear map has no room for, if another
    network has written it there: so learned reductions of images beat bicubic ones by decibels once they are enlarged
    again (Kim et al. 2018, ECCV, "Task-aware image downscaling"; Sun & Chen 2020, arXiv 1907.12904). Convolutions see
    every place of every image with the same weights, so a few hundred images teach them; a dense layer, the decoder's
    above all, learns so few by heart (docs/log.md). Starts as the identity.
    """

    def __init__(self, channels: int, width: int, count: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.first = nn.Conv2d(4 * channels, width, 3, 1, 1)
        self.blocks = blocks(width, count)
        self.norm = norm(width)
        self.last = nn.Conv2d(width, 4 * channels, 3, 1, 1)
        amplify(self.first, DETAIL_GAIN)
        amplify(self.last, 0.0)

    def forward(self, images: Tensor) -> Tensor:
        """[batch, channels, size, size] in [0, 1] -> [batch, channels, side, side], and a little beyond."""
        small = shrink(images.float(), self.side)  # as the linear path, which is float32 in any model
        folded = F.pixel_unshuffle(2.0 * to_multiple(small, 2) - 1.0, 2)
        features = self.blocks(self.first(folded.to(images.dtype)))
        change = GENTLE_GAIN * F.pixel_shuffle(self.last(F.silu(self.norm(features))), 2)
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
        """[batch, channels_in, size, size] -> [batch, channels_out, size / 2, size / 2]."""
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
        """[batch, channels_in, size, size] -> [batch, channels_out, 2 * size, 2 * size]."""
        repeated = features.repeat_interleave(self.repeats, dim=1)
        return F.pixel_shuffle(self.mix(features) + repeated, 2)


class ResidualEncoder(Encoder):
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
        self.head = GentleLinear(width * side * side, 2 * config.latents)
        wanted = config.pca_init and config.pre_encoder_blocks > 0
        seen = config.image_size if config.refine_resolution == "full" else working_side(config.image_size)
        self.prepare = Prepare(channels, widths[0], config.pre_encoder_blocks, seen) if wanted else None

    def prepared(self, images: Tensor) -> Tensor:
        """See `Encoder.prepared`."""
        return images if self.prepare is None else self.prepare(images)

    def forward(self, images: Tensor) -> Tensor:
        """Sizes that are no multiple of the total stride are extended by their edge pixels."""
        features: Tensor = self.stages(2.0 * to_multiple(images, self.multiple) - 1.0)
        return self._moments(features)


class Stage(nn.Module):
    """Doubles a map, lets it see the linear path's picture where there is one, and refines it."""

    def __init__(self, channels_in: int, channels_out: int, count: int, look: Look | None) -> None:
        super().__init__()
        self.up = Up(channels_in, channels_out)
        self.look = look
        self.refine = blocks(channels_out, count)

    def forward(self, features: Tensor, picture: Tensor | None) -> Tensor:
        """[batch, channels_in, size, size] -> [batch, channels_out, 2 * size, 2 * size]."""
        larger = self.up(features)
        if self.look is not None and picture is not None:
            larger = larger + self.look(picture, larger.shape[-1])
        refined: Tensor = self.refine(larger)
        return refined


class ResidualDecoder(Decoder):
    """One linear layer, then doublings and blocks up to half the image's size, whose channels become its pixels."""

    def __init__(self, config: ResidualConfig, channels: int) -> None:
        super().__init__()
        widths = stage_channels(config)[::-1]
        self.size = config.image_size
        self.width = bottleneck_channels(config, widths[0])
        self.side = math.ceil(config.image_size / 2 ** len(widths))
        self.frame = self.side * 2 ** len(widths)
        self.head = nn.Linear(config.latents, self.width * self.side * self.side)
        self.neck = nn.Identity() if self.width == widths[0] else nn.Conv2d(self.width, widths[0], 1)
        counts = [config.blocks] * len(widths)
        self.detailed = self._map_of_details(config, channels, len(widths))
        counts[self.detailed] = config.refine_blocks
        self.refine = nn.Sequential(*_attention(widths[0], config), *blocks(widths[0], counts[0]))
        self.stages = nn.ModuleList(
            Stage(before, after, counts[number], self._look(channels, number, after) if config.pca_init else None)
            for number, (before, after) in enumerate(pairwise(widths), start=1)
        )
        self.norm = norm(widths[-1])
        self.last = nn.Conv2d(widths[-1], 4 * channels, 3, 1, 1)
        self._make_gain()

    def forward(self, latents: Tensor, picture: Tensor | None = None) -> Tensor:
        """Sizes that are no multiple of the total stride are cut out of the next larger one."""
        small = self.head(latents).unflatten(1, (self.width, self.side, self.side))
        features = self.refine(self.neck(small))
        framed = None if picture is None else in_frame(picture, self.size, self.frame)
        for stage in self.stages:
            features = stage(features, framed)
        detail: Tensor = self.detail_gain * F.pixel_shuffle(self.last(F.silu(self.norm(features))), 2)
        return detail[..., : self.size, : self.size]

    def begin_beside_linear_path(self, kept: int) -> None:
        """See the picture alone, and that at the map of the details.

        The shortcuts carry what coarse maps hold to the larger ones, as blocks: at first random mixtures of latents and
        of the picture's coarse versions, in which its details drown (docs/log.md has what each change brought).
        """
        super().begin_beside_linear_path(kept)
        nn.init.zeros_(self.head.weight[:, :kept])
        if kept == self.head.in_features:
            nn.init.zeros_(self.head.bias)
            if isinstance(self.neck, nn.Conv2d) and self.neck.bias is not None:
                nn.init.zeros_(self.neck.bias)
        for number, stage in enumerate(self.stages, start=1):
            if isinstance(stage, Stage) and stage.look is not None:
                amplify(stage.look, DETAIL_GAIN if number == self.detailed else 0.0)

    def _map_of_details(self, config: ResidualConfig, channels: int, maps: int) -> int:
        """Its number, from the smallest one: the finest, or about half of the picture, if that sees all of it."""
        finest = maps - 1
        if config.refine_resolution == "full" or not config.pca_init:
            return finest
        halvings = round(math.log2(self.size / working_side(self.size)))
        numbers = range(max(finest - halvings, 0), finest)
        return next((n for n in numbers if sees_all(channels, self.side * 2**n, self.size, self.frame)), finest)

    def _look(self, channels: int, number: int, channels_out: int) -> Look:
        return Look(channels, self.side * 2**number, self.size, self.frame, channels_out)
