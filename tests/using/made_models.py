"""A tiny model of random weights, for the verbs on finished models."""

from __future__ import annotations

from pathlib import Path

import torch

from unified_vae.config.model import ConvConfig
from unified_vae.core.posterior import DiagonalGaussian
from unified_vae.models.build import build_model
from unified_vae.models.pretrained import measure_latent_stats, save_pretrained, save_stats

SIZE, LATENTS = 16, 6
COUNT = 23
"""Images of the fixture `pictures`, without the copy."""


def write_model(folder: Path, seed: int = 3, latents: int = LATENTS) -> Path:
    """A model of random weights, with statistics of made-up latents."""
    config = ConvConfig(image_size=SIZE, latents=latents, base_channels=4, channels=3, pca_init=False)
    save_pretrained(folder, config, build_model(config, seed=seed).state_dict(), {"loss": {}})
    mean = 2 + 3 * torch.randn(40, latents, generator=torch.Generator().manual_seed(1))
    save_stats(folder, measure_latent_stats(DiagonalGaussian(mean, torch.full((40, latents), -1.0))))
    return folder
