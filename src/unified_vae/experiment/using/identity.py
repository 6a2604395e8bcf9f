"""Which weights a model has, so that latents can be told from another model's."""

from __future__ import annotations

import hashlib

from unified_vae.models.config import ModelConfig, SpatialConfig
from unified_vae.models.vae import VAE


def fingerprint(model: VAE) -> str:
    """SHA-256 over names, shapes and values of all weights, hexadecimal; the same wherever they were read from."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        values = value.detach().cpu().contiguous().numpy()
        digest.update(f"{name} {values.shape} {values.dtype}\n".encode())
        digest.update(values.data)
    return digest.hexdigest()


def latent_shape(config: ModelConfig) -> tuple[int, ...]:
    """The shape of one image's latents: [latents], or that of the map, [channels, height, width]."""
    if isinstance(config, SpatialConfig):
        return config.latent_channels, config.side, config.side
    return (config.latents,)
