"""Parts of a small model, for the tests of this folder."""

from __future__ import annotations

import torch

from unified_vae.config.model import ConvConfig
from unified_vae.core.posterior import DiagonalGaussian

SIZE, LATENTS = 16, 6
RUN = {
    "name": "faces",
    "names": {"mode": "quick_test", "loss": "mse_l1"},
    "data": "100 images from a|b.zip",
    "license": "unknown",
    "step": 1234,
    "validation": {"psnr": 21.5, "rate.nats": 1040.25, "active_units": 5.0},
}


def config(channels: int) -> ConvConfig:
    return ConvConfig(image_size=SIZE, latents=LATENTS, base_channels=4, channels=channels, pca_init=False)


def posteriors() -> DiagonalGaussian:
    numbers = torch.Generator().manual_seed(1)
    mean = 2 + torch.randn(40, LATENTS, generator=numbers)
    return DiagonalGaussian(mean, torch.full((40, LATENTS), -1.0))
