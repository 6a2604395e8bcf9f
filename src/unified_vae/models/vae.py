"""The VAE: an encoder, a decoder, and the draw between them (Kingma & Welling 2014, arXiv 1312.6114)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from unified_vae.core.linear_gaussian import LARGEST_VARIANCE, LinearVAE
from unified_vae.core.posterior import DiagonalGaussian
from unified_vae.core.precision import full_precision
from unified_vae.core.principal_components import PrincipalComponents, enlarge
from unified_vae.core.vae_output import VAEOutput
from unified_vae.models.density import LatentDensity, NormalDensity
from unified_vae.models.gentle_linear import GentleLinear
from unified_vae.models.linear_path import LinearPath

ENCODE_BATCH = 64  # images at once, as far as their pixels are no more than at 256 px
GREY = 0.5  # what a decoder without a linear path starts from
FULL_GAIN = 0.5  # of detail that makes the whole image out of grey
GENTLE_GAIN = (
    0.05  # of detail beside a linear path's picture: for the reason given at GentleLinear; chosen in docs/log.md
)

GAINS_BEFORE = {"encoder.head.gain": 1.0, "decoder.detail_gain": FULL_GAIN}
"""What models computed with whose files do not name their gains."""


class Encoder(nn.Module):
    """Images [batch, channels, size, size] in [0, 1] -> posterior moments [batch, 2 * latents].

    Attributes:
        head: the last layer; unit j is its rows j (mean) and latents + j (log variance).
    """

    head: GentleLinear

    def prepared(self, images: Tensor) -> Tensor:
        """What the linear path is given of images [batch, channels, size, size]: the images, unless a family says."""
        return images

    def _moments(self, features: Tensor) -> Tensor:
        """The head of feature maps, in float32: the posterior is exact (objective.md)."""
        with full_precision(features.device):
            moments: Tensor = self.head(features.float().flatten(1))
        return moments

    @torch.no_grad()
    def replace_units(self, which: Tensor, donor: Encoder) -> None:
        """Take the latent units `which` ([latents], bool, on this module's device) from one of the same shape."""
        self.head.replace(torch.cat([which, which]), donor.head)


class Decoder(nn.Module):
    """Latents [batch, latents] -> detail [batch, channels, size, size]: what is added to grey, or to a picture.

    `forward` takes the latents and the linear path's picture [batch, channels, side, side], None without one.

    Attributes:
        head: the first layer; unit j is its column j.
        last: the last layer that has weights.
        detail_gain: what its output is multiplied by; a buffer, as the gain of `GentleLinear`.
    """

    head: nn.Linear
    last: nn.Conv2d | nn.ConvTranspose2d
    detail_gain: Tensor

    def _make_gain(self) -> None:
        """The gain before any start; a method, as the spatial family has none."""
        self.register_buffer("detail_gain", torch.tensor(FULL_GAIN))

    def begin_beside_linear_path(self, kept: int) -> None:
        """Add nothing yet to its picture, which shows the first `kept` units; softly, where it shows any."""
        nn.init.zeros_(self.last.weight)
        if self.last.bias is not None:
            nn.init.zeros_(self.last.bias)
        if kept:
            self.detail_gain.fill_(GENTLE_GAIN)

    @torch.no_grad()
    def replace_units(self, which: Tensor, donor: Decoder) -> None:
        """Take the latent units `which` ([latents], bool, on this module's device) from one of the same shape."""
        self.head.weight[:, which] = donor.head.weight.to(self.head.weight)[:, which]


class VAE(nn.Module):
    """Any encoder and decoder that agree on the number of latents.

    Attributes:
        latents: number of latent units.
        channels: image channels, 1 or 3.
        image_size: height and width in pixels.
        linear: the path beside the network that starts at PCA; None for the network alone.
        density: what `sample` draws latents from; N(0, I) until one is fitted.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        latents: int,
        channels: int,
        image_size: int,
        linear: LinearPath | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.linear = linear
        self.latents = latents
        self.channels = channels
        self.image_size = image_size
        self._beside: list[LatentDensity] = [NormalDensity(latents)]  # a list, so that no state dict holds it

    @property
    def density(self) -> LatentDensity:
        """Stays on the CPU, wherever the model is, so that every device samples the same latents."""
        return self._beside[0]

    @property
    def encode_batch_size(self) -> int:
        """Images to encode at once: fixed, so that results do not depend on what fits into memory."""
        return max(1, min(ENCODE_BATCH, ENCODE_BATCH * 256**2 // self.image_size**2))

    def use_density(self, density: LatentDensity) -> None:
        """Sample from `density` from now on. (A module takes no setter for an attribute that is itself a module.)"""
        self._beside = [density]

    def encode(self, images: Tensor) -> DiagonalGaussian:
        """q(z|x) of images [batch, channels, size, size] in [0, 1]; float32 whatever the network's precision."""
        posterior = DiagonalGaussian.from_moments(self.encoder(images))
        if self.linear is None:
            return posterior
        linear = self.linear.encode(self.encoder.prepared(images))
        return DiagonalGaussian(posterior.mean + linear, posterior.logvar)

    def decode(self, latents: Tensor) -> Tensor:
        """Images [batch, channels, size, size] of latents [batch, latents], not clipped.

        Given as float32, computed in the network's precision.
        """
        picture = None if self.linear is None else self.linear.decode(latents)
        detail: Tensor = self.decoder(latents, picture)
        base = GREY if picture is None else enlarge(picture, self.image_size)
        return base + detail.float()

    @torch.no_grad()
    def sample(
        self,
        count: int,
        generator: torch.Generator,
        density: Literal["fitted", "normal"] = "fitted",
        temperature: float = 1.0,
    ) -> Tensor:
        """New images [count, channels, size, size], not clipped.

        Args:
            generator: of the CPU, where the same images are wanted on every device.
            density: `fitted` draws latents from `self.density`, `normal` from N(0, I).
            temperature: see `LatentDensity.sample`.
        """
        source = NormalDensity(self.latents) if density == "normal" else self.density
        latents = source.sample(count, generator, temperature)
        return self.decode(latents.to(next(self.parameters()).device))

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
    def start_at(self, basis: PrincipalComponents, linear: LinearVAE) -> None:
        """Become the optimal linear VAE: the network adds nothing yet, and posteriors have the best variance.

        Units that this VAE does not use keep the first weights of the network.
        """
        assert self.linear is not None, "this model has no linear path"
        kept, head = self.linear.start(basis, linear), self.encoder.head
        for first in (0, self.latents):
            head.silence(first, kept)
        logvar = torch.from_numpy(linear.posterior_variances[:kept]).clamp(max=LARGEST_VARIANCE).log()
        head.bias[self.latents : self.latents + kept] = logvar.to(head.bias)
        self.decoder.begin_beside_linear_path(kept)

    def upgrade_state_dict(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of a file, with the gains that files of earlier versions lack."""
        own = self.state_dict()
        before = {name: torch.full_like(own[name], gain) for name, gain in GAINS_BEFORE.items() if name in own}
        return {**before, **weights}

    @torch.no_grad()
    def replace_units(self, which: Tensor, donor: VAE) -> None:
        """Take the latent units `which` ([latents], bool) from a model of the same shape, in place."""
        which = which.to(next(self.parameters()).device)
        self.encoder.replace_units(which, donor.encoder)
        self.decoder.replace_units(which, donor.decoder)
        if self.linear is not None and donor.linear is not None:
            self.linear.replace_units(which, donor.linear)
