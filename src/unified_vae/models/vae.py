"""The VAE: an encoder, a decoder, and the draw between them (Kingma & Welling 2014, arXiv 1312.6114)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unified_vae.core.distributions import DiagonalGaussian, VAEOutput
from unified_vae.core.linear_vae import LARGEST_VARIANCE, LinearVAE, PrincipalComponents, enlarge
from unified_vae.models.density import LatentDensity, NormalDensity
from unified_vae.models.pca_skip import PCASkip

ENCODE_BATCH = 64  # images at once, as far as their pixels are no more than at 256 px
GRAY = 0.5  # what a decoder without a PCA skip adds to
RESIDUAL_SCALE = 0.5  # of the decoder's output, where it makes the whole image out of gray
RESIDUAL_INIT_SCALE = 0.05  # beside a PCA skip, for the reason given at ScaledLinear; chosen in docs/log.md

MISSING_BUFFERS = {"encoder.head.gain": 1.0, "decoder.residual_scale": RESIDUAL_SCALE}
"""What models computed with whose files do not name these buffers."""

RENAMED_TENSORS = (
    (r"^linear\.to_picture\.", "pca_skip.to_pixels."),
    (r"^linear\.", "pca_skip."),
    (r"^encoder\.prepare\.first\.", "encoder.pre_encoder.conv_in."),
    (r"^encoder\.prepare\.last\.", "encoder.pre_encoder.conv_out."),
    (r"^encoder\.prepare\.", "encoder.pre_encoder."),
    (r"^decoder\.neck\.", "decoder.bottleneck."),
    (r"^decoder\.last\.", "decoder.conv_out."),
    (r"^decoder\.detail_gain$", "decoder.residual_scale"),
    (r"^(decoder\.stages\.\d+)\.look\.", r"\1.pca_conditioning."),
)
"""Names of tensors in files of earlier versions -> names of today, as regular expressions; the first match counts."""


class ScaledLinear(nn.Linear):
    """Linear layer with a per-output gain, gain * (W x) + bias, so that Adam's first steps keep the PCA initialization.

    An optimizer of the Adam kind moves every weight by the learning rate, so a layer of n inputs moves its output by n
    times as much in its first step. In the encoder's head, of 4,096 inputs, that threw the posterior means off by more
    than their own spread, and the PCA initialization was lost at once. A gain of 1/sqrt(n), the NTK parametrization of
    Jacot et al. 2018 (arXiv 1806.07572, section 3), makes these steps small.

    Attributes:
        gain: [outputs], 1 until `zero_init_rows`; a buffer, so that a file of weights says what it was trained with.
    """

    gain: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("gain", torch.ones(outputs))

    def forward(self, features: Tensor) -> Tensor:
        """Map [batch, inputs] to [batch, outputs]."""
        return torch.addcmul(self.bias, F.linear(features, self.weight), self.gain)

    @torch.no_grad()
    def zero_init_rows(self, first: int, count: int) -> None:
        """Let `count` outputs from `first` on start at zero, with a gain of 1/sqrt(inputs)."""
        rows = slice(first, first + count)
        self.weight[rows] = 0
        self.bias[rows] = 0
        self.gain[rows] = self.in_features**-0.5


class Encoder(nn.Module):
    """Images [batch, channels, size, size] in [0, 1] -> posterior moments [batch, 2 * latents].

    Attributes:
        head: the last layer; unit j is its rows j (mean) and latents + j (log variance).
    """

    head: ScaledLinear

    def preprocess(self, images: Tensor) -> Tensor:
        """Return what the PCA skip encodes, for images [batch, channels, size, size]: the images, unless overridden."""
        return images

    @torch.no_grad()
    def reinit_latent_units(self, mask: Tensor, source: Encoder) -> None:
        """Take the latent units where `mask` ([latents], bool, on this device) is true from another encoder."""
        rows = torch.cat([mask, mask])
        for name, dst in self.head.state_dict().items():
            dst[rows] = source.head.state_dict()[name].to(dst)[rows]


class Decoder(nn.Module):
    """Latents [batch, latents] -> residual [batch, channels, size, size], added to gray or the PCA reconstruction.

    `forward` takes the latents and the PCA reconstruction [batch, channels, side, side], None without a PCA skip.

    Attributes:
        head: the first layer; unit j is its column j.
        conv_out: the last layer that has weights.
        residual_scale: what its output is multiplied by; a buffer, as the gain of `ScaledLinear`.
    """

    head: nn.Linear
    conv_out: nn.Conv2d | nn.ConvTranspose2d
    residual_scale: Tensor

    def reset_residual_branch(self, active: int) -> None:
        """Let the residual be zero, and grow slowly where the PCA reconstruction shows any of the first units."""
        nn.init.zeros_(self.conv_out.weight)
        if self.conv_out.bias is not None:
            nn.init.zeros_(self.conv_out.bias)
        if active:
            self.residual_scale.fill_(RESIDUAL_INIT_SCALE)

    @torch.no_grad()
    def reinit_latent_units(self, mask: Tensor, source: Decoder) -> None:
        """Take the latent units where `mask` ([latents], bool, on this device) is true from another decoder."""
        self.head.weight[:, mask] = source.head.weight.to(self.head.weight)[:, mask]


class VAE(nn.Module):
    """Any encoder and decoder that agree on the number of latents.

    Attributes:
        latents: number of latent units.
        channels: image channels, 1 or 3.
        image_size: height and width in pixels.
        pca_skip: the linear maps beside the network; None for the network alone.
        density: what `sample` draws latents from; N(0, I) until one is fitted.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        latents: int,
        channels: int,
        image_size: int,
        pca_skip: PCASkip | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.pca_skip = pca_skip
        self.latents = latents
        self.channels = channels
        self.image_size = image_size
        self._density: list[LatentDensity] = [NormalDensity(latents)]  # a list, so that no state dict holds it

    @property
    def density(self) -> LatentDensity:
        """What `sample` draws from; on the CPU wherever the model is, so that every device samples the same."""
        return self._density[0]

    @property
    def encode_batch_size(self) -> int:
        """Images to encode at once: fixed, so that results do not depend on what fits into memory."""
        return max(1, min(ENCODE_BATCH, ENCODE_BATCH * 256**2 // self.image_size**2))

    def use_density(self, density: LatentDensity) -> None:
        """Sample from `density` from now on. (A module takes no setter for an attribute that is itself a module.)"""
        self._density = [density]

    def encode(self, images: Tensor) -> DiagonalGaussian:
        """q(z|x) of images [batch, channels, size, size] in [0, 1]; float32 whatever the network's precision."""
        posterior = DiagonalGaussian.from_moments(self.encoder(images))
        if self.pca_skip is None:
            return posterior
        linear = self.pca_skip.encode(self.encoder.preprocess(images))
        return DiagonalGaussian(posterior.mean + linear, posterior.logvar)

    def decode(self, latents: Tensor) -> Tensor:
        """Images [batch, channels, size, size] of latents [batch, latents], not clipped.

        Given as float32, computed in the network's precision.
        """
        reconstruction = None if self.pca_skip is None else self.pca_skip.decode(latents)
        residual: Tensor = self.decoder(latents, reconstruction)
        base = GRAY if reconstruction is None else enlarge(reconstruction, self.image_size)
        return base + residual.float()

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
    def init_from_pca(self, basis: PrincipalComponents, linear: LinearVAE) -> None:
        """Become the optimal linear VAE: the network adds nothing yet, and posteriors have the best variance.

        Units that the linear VAE does not use keep the first weights of the network.
        """
        assert self.pca_skip is not None, "this model has no PCA skip"
        active, head = self.pca_skip.init_from_pca(basis, linear), self.encoder.head
        for first in (0, self.latents):
            head.zero_init_rows(first, active)
        logvar = torch.from_numpy(linear.posterior_variances[:active]).clamp(max=LARGEST_VARIANCE).log()
        head.bias[self.latents : self.latents + active] = logvar.to(head.bias)
        self.decoder.reset_residual_branch(active)

    @staticmethod
    def upgrade_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors of a file under today's names; of an optimizer's state too (`parameter/slot`)."""
        upgraded = {}
        for name, tensor in tensors.items():
            renamed = (re.sub(before, now, name) for before, now in RENAMED_TENSORS)
            upgraded[next((other for other in renamed if other != name), name)] = tensor
        return upgraded

    def upgrade_state_dict(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of a file as this version names them, with the buffers that earlier versions left out."""
        expected = self.state_dict()
        missing = {n: torch.full_like(expected[n], value) for n, value in MISSING_BUFFERS.items() if n in expected}
        return {**missing, **self.upgrade_names(tensors)}

    @torch.no_grad()
    def reinit_latent_units(self, mask: Tensor, source: VAE) -> None:
        """Take the latent units where `mask` ([latents], bool) is true from a model of the same shape, in place."""
        mask = mask.to(next(self.parameters()).device)
        self.encoder.reinit_latent_units(mask, source.encoder)
        self.decoder.reinit_latent_units(mask, source.decoder)
        if self.pca_skip is not None and source.pca_skip is not None:
            self.pca_skip.reinit_latent_units(mask, source.pca_skip)
