"""From a model's config to the model."""

from __future__ import annotations

import torch

from unified_vae.config.model import ConvConfig, ModelConfig, ResidualConfig, SpatialConfig, VectorConfig
from unified_vae.models.conv import ConvDecoder, ConvEncoder
from unified_vae.models.linear_path import LinearPath
from unified_vae.models.residual import ResidualDecoder, ResidualEncoder
from unified_vae.models.spatial import SpatialDecoder, SpatialEncoder
from unified_vae.models.vae import VAE, Decoder, Encoder


def build_model(config: ModelConfig, seed: int | None = None) -> VAE:
    """The untrained model.

    Args:
        config: with `channels` resolved to a number.
        seed: decides the first weights; None leaves them to torch's global generator.

    Raises:
        ValueError: `channels` is still `auto`.
    """
    if config.channels == "auto":
        raise ValueError("model.channels is still 'auto': it is resolved from the data before a model is built")
    if seed is None:
        return _build(config, config.channels)
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(seed % 2**63)
        return _build(config, config.channels)


def _build(config: ModelConfig, channels: int) -> VAE:
    encoder, decoder = _parts(config, channels)
    linear = None
    if isinstance(config, VectorConfig) and config.pca_init:
        linear = LinearPath(config.latents, channels, config.image_size)
    return VAE(encoder, decoder, config.latents, channels, config.image_size, linear)


def _parts(config: ModelConfig, channels: int) -> tuple[Encoder, Decoder]:
    match config:
        case ConvConfig():
            return ConvEncoder(config, channels), ConvDecoder(config, channels)
        case ResidualConfig():
            return ResidualEncoder(config, channels), ResidualDecoder(config, channels)
        case SpatialConfig():
            return SpatialEncoder(config, channels), SpatialDecoder(config, channels)
