"""The VAE: an encoder, a decoder, and the draw between them (Kingma & Welling 2014, arXiv 1312.6114)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unified_vae.core.posterior import DiagonalGaussian
from unified_vae.core.vae_output import VAEOutput


class Encoder(nn.Module):
    """Images [batch, channels, size, size] in [0, 1] -> posterior moments [batch, 2 * latents].

    Attributes:
        head: the last layer; unit j is its rows j (mean) and latents + j (log variance).
    """

    head: nn.Linear


class Decoder(nn.Module):
    """Latents [batch, latents] -> images [batch, channels, size, size], nominally in [0, 1], not clipped.

    Attributes:
        head: the first layer; unit j is its column j.
    """

    head: nn.Linear


class VAE(nn.Module):
    """Any encoder and decoder that agree on the number of latents.

    Attributes:
        latents: number of latent units.
        channels: image channels, 1 or 3.
        image_size: height and width in pixels.
    """

    def __init__(self, encoder: Encoder, decoder: Decoder, latents: int, channels: int, image_size: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.latents = latents
        self.channels = channels
        self.image_size = image_size

    def encode(self, images: Tensor) -> DiagonalGaussian:
        """q(z|x) of images [batch, channels, size, size] in [0, 1]; float32 whatever the network's precision."""
        return DiagonalGaussian.from_moments(self.encoder(images))

    def decode(self, latents: Tensor) -> Tensor:
        """Images [batch, channels, size, size] of latents [batch, latents], not clipped.

        Given as float32, computed in the network's precision.
        """
        images: Tensor = self.decoder(latents)
        return images.float()

    def forward(self, images: Tensor, noise: Tensor | None = None) -> VAEOutput:
        """Encode, draw, decode, in one call, so that wrappers of `forward` see the whole pass.

        Args:
            images: [batch, channels, size, size] in [0, 1].
            noise: standard normal, [batch, latents]; None decodes the posterior's mean.
        """
        posterior = self.encode(images)
        latents = posterior.mean if noise is None else posterior.sample(noise)
        return VAEOutput(self.decode(latents), posterior, latents)

    @torch.no_grad()
    def replace_units(self, which: Tensor, donor: VAE) -> None:
        """Take the latent units `which` ([latents], bool) from a model of the same shape, in place."""
        device = self.encoder.head.weight.device
        which = which.to(device)
        rows = torch.cat([which, which])
        self.encoder.head.weight[rows] = donor.encoder.head.weight.to(device)[rows]
        self.encoder.head.bias[rows] = donor.encoder.head.bias.to(device)[rows]
        self.decoder.head.weight[:, which] = donor.decoder.head.weight.to(device)[:, which]
