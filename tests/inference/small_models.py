"""Small models of random weights, as a run leaves them, for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import torch

from unified_vae.config.model import ConvConfig, ModelConfig, SpatialConfig
from unified_vae.core.distributions import DiagonalGaussian
from unified_vae.models.build import build_model
from unified_vae.models.pretrained import measure_latent_stats, save_pretrained, save_stats

SIZE, LATENTS = 16, 6
COUNT = 23
"""Images of the fixture `pictures`, without the copy."""
RUN = {
    "name": "faces",
    "names": {"mode": "quick_test", "loss": "mse_l1"},
    "data": "100 images from a|b.zip",
    "license": "unknown",
    "step": 1234,
    "validation": {"psnr": 21.5, "rate.nats": 1040.25, "active_units": 5.0},
}


def config(channels: int, latents: int = LATENTS) -> ConvConfig:
    return ConvConfig(image_size=SIZE, latents=latents, base_channels=4, channels=channels, pca_init=False)


def spatial_config() -> SpatialConfig:
    return SpatialConfig(
        image_size=SIZE, downsample_factor=4, latent_channels=3, base_channels=4, layers_per_block=1, channels=3
    )


def posteriors(latents: int = LATENTS) -> DiagonalGaussian:
    mean = 2 + torch.randn(40, latents, generator=torch.Generator().manual_seed(1))
    return DiagonalGaussian(mean, torch.full((40, latents), -1.0))


def write_model(folder: Path, seed: int = 3, latents: int = LATENTS, settings: ModelConfig | None = None) -> Path:
    """A model of random weights; of vectors, with statistics of made-up latents."""
    settings = settings or config(3, latents)
    save_pretrained(folder, settings, build_model(settings, seed=seed).state_dict(), {"loss": {}})
    if isinstance(settings, ConvConfig):
        save_stats(folder, measure_latent_stats(posteriors(latents)))
    return folder
