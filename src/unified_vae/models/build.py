"""From a model's config to the model."""

from __future__ import annotations

import torch

from unified_vae.config.model import ConvConfig, ModelConfig, ResidualConfig, SpatialConfig, VectorConfig
from unified_vae.models.autoencoder_kl import KLDecoder, KLEncoder
from unified_vae.models.conv import ConvDecoder, ConvEncoder
from unified_vae.models.pca_skip import PCASkip
from unified_vae.models.residual import ResidualDecoder, ResidualEncoder
from unified_vae.models.vae import VAE, Decoder, Encoder


def build_model(config: ModelConfig, seed: int | None = None) -> VAE:
    """Build the untrained model.

    Args:
        config: with `channels` resolved to a number.
        seed: decides the first weights; None leaves them to torch's global generator.

    Raises:
        ValueError: `channels` is still `auto`.
    """
    if config.channels == "auto":
        raise ValueError("model.channels is still 'auto': it is resolved from the data before a model is built")
    encoder: Encoder
    decoder: Decoder
    channels = config.channels
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.random.manual_seed(seed % 2**63)
        match config:
            case ConvConfig():
                encoder, decoder = ConvEncoder(config, channels), ConvDecoder(config, channels)
            case ResidualConfig():
                encoder, decoder = ResidualEncoder(config, channels), ResidualDecoder(config, channels)
            case SpatialConfig():
                encoder, decoder = KLEncoder(config, channels), KLDecoder(config, channels)
        pca_skip = None
        if isinstance(config, VectorConfig) and config.pca_init:
            pca_skip = PCASkip(config.latents, channels, config.image_size)
        return VAE(encoder, decoder, config.latents, channels, config.image_size, pca_skip)
