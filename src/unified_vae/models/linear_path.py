"""The linear part of a VAE, started at the optimum that theory knows in closed form (core/linear_gaussian.py).

A path of two matrices runs beside the network: images -> latents, and latents -> a picture. At the start it is
the optimal linear VAE of the training images, so that a run begins at the quality of a PCA instead of at grey;
the network then learns only what a linear map cannot do. The decoder also sees the picture at each of its sizes,
which turns its task into restoring a picture that is there already.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unified_vae.core.linear_gaussian import LinearVAE
from unified_vae.core.precision import full_precision
from unified_vae.core.principal_components import PrincipalComponents, enlarge, shrink, working_side


class LinearPath(nn.Module):
    """Two linear maps, always in float32.

    Attributes:
        side: height and width of the pictures, in pixels; images are averaged down to it.
        to_latents: pixels of the averaged-down image -> posterior mean.
        to_picture: latents -> pixels of the picture.
    """

    def __init__(self, latents: int, channels: int, image_size: int) -> None:
        super().__init__()
        self.side = working_side(image_size)
        self.channels = channels
        values = channels * self.side**2
        self.to_latents = nn.Linear(values, latents)
        self.to_picture = nn.Linear(latents, values)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
            parameter.requires_grad_(False)

    def encode(self, images: Tensor) -> Tensor:
        """The path's part of the posterior means, [batch, latents], of images [batch, channels, size, size]."""
        with full_precision(images.device):
            means: Tensor = self.to_latents(shrink(images.float(), self.side).flatten(1))
        return means

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures [batch, channels, side, side] of latents [batch, latents]."""
        with full_precision(latents.device):
            pixels: Tensor = self.to_picture(latents.float())
        return pixels.unflatten(1, (self.channels, self.side, self.side))

    @torch.no_grad()
    def start(self, basis: PrincipalComponents, linear: LinearVAE) -> int:
        """Become the optimal linear VAE; returns how many units carry something. The others stay at zero.

        Args:
            basis: at least as many components as `linear` keeps.
            linear: the optimum for the first components of `basis`.
        """
        kept = linear.active_units
        components = basis.components[:kept].flatten(1).double()
        spectrum = basis.eigenvalues[: len(linear.posterior_variances)]
        # the spectrum is that of full-size images; coordinates of averaged-down ones are smaller by this
        smaller = basis.covered**-0.5
        gain_in = torch.from_numpy(linear.encoder_gains(spectrum)[:kept]) / smaller
        gain_out = torch.from_numpy(linear.decoder_gains(spectrum)[:kept]) * smaller
        into = gain_in[:, None] * components
        for parameter in self.parameters():
            parameter.zero_()
        self.to_latents.weight[:kept] = into.float()
        self.to_latents.bias[:kept] = -(into @ basis.mean.flatten().double()).float()
        self.to_picture.weight[:, :kept] = (components.T * gain_out).float()
        self.to_picture.bias.copy_(basis.mean.flatten())
        return kept

    @torch.no_grad()
    def replace_units(self, which: Tensor, donor: LinearPath) -> None:
        """Take the units `which` ([latents], bool) from a path of the same shape, in place."""
        for mine, theirs in (
            (self.to_latents.weight, donor.to_latents.weight),
            (self.to_latents.bias, donor.to_latents.bias),
        ):
            mine[which] = theirs.to(mine)[which]
        self.to_picture.weight[:, which] = donor.to_picture.weight.to(self.to_picture.weight)[:, which]


def folding(channels: int, size: int, side: int, most_channels: int) -> int:
    """How many pixels a side of the picture are folded into one pixel of a map of `size`: a power of two.

    Args:
        channels: of the picture.
        side: height and width of the picture.
        most_channels: bound on the channels that come out. What is too fine for a small map is left to the larger ones.
    """
    fold = 1
    while size * 2 * fold <= side and channels * (2 * fold) ** 2 <= most_channels:
        fold *= 2
    return fold


def at_size(picture: Tensor, size: int, most_channels: int) -> Tensor:
    """The picture [batch, channels, side, side] as features of a map of `size`, details folded into channels."""
    side = picture.shape[-1]
    fold = folding(picture.shape[1], size, side, most_channels)
    scaled = enlarge(picture, size) if size > side else shrink(picture, size * fold)
    return F.pixel_unshuffle(scaled, fold) if fold > 1 else scaled
