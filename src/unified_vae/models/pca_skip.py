"""The PCA skip connection: two linear maps beside the network, initialized to the optimal linear VAE of the images.

One maps images to latents, the other latents to an image. They start at the optimum that theory knows in closed form
(core/linear_vae.py), so that a run begins at the quality of a PCA instead of at gray, and the network then learns
only what a linear map cannot do. The decoder's feature maps are conditioned on the PCA reconstruction, which turns its
task into image restoration.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unified_vae.core.device import full_precision
from unified_vae.core.linear_vae import LinearVAE, PrincipalComponents, enlarge, shrink, working_side


class PCASkip(nn.Module):
    """Two linear maps, always in float32, which are not trained.

    Attributes:
        side: height and width of the PCA reconstruction, in pixels; images are averaged down to it.
        to_latents: pixels of the averaged-down image -> posterior mean.
        to_pixels: latents -> pixels of the PCA reconstruction.
    """

    def __init__(self, latents: int, channels: int, image_size: int) -> None:
        super().__init__()
        self.side = working_side(image_size)
        self.channels = channels
        values = channels * self.side**2
        self.to_latents = nn.Linear(values, latents)
        self.to_pixels = nn.Linear(latents, values)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
            parameter.requires_grad_(False)

    def encode(self, images: Tensor) -> Tensor:
        """Return its part of the posterior means, [batch, latents], of images [batch, channels, size, size]."""
        with full_precision(images.device):
            means: Tensor = self.to_latents(shrink(images.float(), self.side).flatten(1))
        return means

    def decode(self, latents: Tensor) -> Tensor:
        """Return PCA reconstructions [batch, channels, side, side] of latents [batch, latents]."""
        with full_precision(latents.device):
            pixels: Tensor = self.to_pixels(latents.float())
        return pixels.unflatten(1, (self.channels, self.side, self.side))

    @torch.no_grad()
    def init_from_pca(self, basis: PrincipalComponents, linear: LinearVAE) -> int:
        """Become the optimal linear VAE; returns how many units are active. The others stay at zero.

        Args:
            basis: at least as many components as `linear` keeps.
            linear: the optimum for the first components of `basis`.
        """
        active = linear.active_units
        components = basis.components[:active].flatten(1).double()
        spectrum = basis.eigenvalues[: len(linear.posterior_variances)]
        # the spectrum is that of full-size images; coordinates of averaged-down ones are smaller by this factor
        factor = basis.covered**-0.5
        gain_in = torch.from_numpy(linear.encoder_gains(spectrum)[:active]) / factor
        gain_out = torch.from_numpy(linear.decoder_gains(spectrum)[:active]) * factor
        weight = gain_in[:, None] * components
        for parameter in self.parameters():
            parameter.zero_()
        self.to_latents.weight[:active] = weight.float()
        self.to_latents.bias[:active] = -(weight @ basis.mean.flatten().double()).float()
        self.to_pixels.weight[:, :active] = (components.T * gain_out).float()
        self.to_pixels.bias.copy_(basis.mean.flatten())
        return active

    @torch.no_grad()
    def reinit_latent_units(self, mask: Tensor, source: PCASkip) -> None:
        """Take the units where `mask` ([latents], bool) is true from a skip of the same shape, in place."""
        for name, dst in self.to_latents.state_dict().items():
            dst[mask] = source.to_latents.state_dict()[name].to(dst)[mask]
        self.to_pixels.weight[:, mask] = source.to_pixels.weight.to(self.to_pixels.weight)[:, mask]


def fold_factor(channels: int, size: int, side: int, max_channels: int) -> int:
    """Return how many pixels along a side are folded into one pixel of a map of `size`: a power of two.

    Args:
        channels: of the PCA reconstruction.
        side: height and width of the PCA reconstruction.
        max_channels: bound on the channels that come out. What is too fine for a small map is left to the larger ones.
    """
    factor = 1
    while size * 2 * factor <= side and channels * (2 * factor) ** 2 <= max_channels:
        factor *= 2
    return factor


def fold_to_size(reconstruction: Tensor, size: int, max_channels: int) -> Tensor:
    """Fold a PCA reconstruction [batch, channels, side, side] into the channels of a map of `size`."""
    side = reconstruction.shape[-1]
    factor = fold_factor(reconstruction.shape[1], size, side, max_channels)
    scaled = enlarge(reconstruction, size) if size > side else shrink(reconstruction, size * factor)
    return F.pixel_unshuffle(scaled, factor) if factor > 1 else scaled
