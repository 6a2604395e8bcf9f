"""Settings of the model families."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from unified_vae.core.config import Config


def _no_truth_value(value: object) -> object:
    """True equals 1 in Python, so a Literal would take it for a number of channels."""
    if isinstance(value, bool):
        raise ValueError("give 1, 3 or auto, not true or false")
    return value


Channels = Annotated[Literal["auto", 1, 3], BeforeValidator(_no_truth_value)]


class ConvConfig(Config):
    """A plain convolutional VAE with a latent vector: stride-2 convolutions down, transposed ones up."""

    family: Literal["conv"] = "conv"
    """Which architecture."""
    image_size: int = Field(default=64, ge=8, le=1024)
    """Height and width of the images, in pixels. Any size; multiples of 16 waste no computation."""
    latents: int = Field(default=256, ge=1)
    """Number of latent units."""
    base_channels: int = Field(default=64, ge=4)
    """Channels of the first stage; they double at each halving, up to `max_multiplier` times this."""
    max_multiplier: int = Field(default=8, ge=1)
    """Bound on the doubling of channels."""
    pca_start: bool = True
    """Begin at the optimal linear VAE of the images (a PCA), with a linear path beside the network; false: the
    network alone, from random weights."""
    channels: Channels = "auto"
    """Image channels: 1 (grey), 3 (RGB), or `auto` to follow the data."""


ModelConfig = ConvConfig
