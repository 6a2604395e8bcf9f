"""Settings of the model families."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from unified_vae.core.config import Config


def _no_truth_value(value: object) -> object:
    """True equals 1 in Python, so a Literal would take it for a number of channels."""
    if isinstance(value, bool):
        raise ValueError("give 1, 3 or auto, not true or false")
    return value


def _power_of_two(value: int) -> int:
    """What 1 becomes by doubling."""
    if value < 1 or value & (value - 1):
        raise ValueError("give a power of two: 1, 2, 4, 8 or more")
    return value


Channels = Annotated[Literal["auto", 1, 3], BeforeValidator(_no_truth_value)]


class _VectorConfig(Config):
    """What the families with a latent vector share."""

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


class ConvConfig(_VectorConfig):
    """A plain convolutional VAE with a latent vector: stride-2 convolutions down, transposed ones up."""

    family: Literal["conv"] = "conv"
    """Which architecture: `conv`, the plain one of the trade, or `residual`, residual blocks without transposed
    convolutions."""


class ResidualConfig(_VectorConfig):
    """A residual VAE with a latent vector: pixels move into channels and back, with shortcuts without weights."""

    family: Literal["residual"] = "residual"
    """Which architecture: `conv`, the plain one of the trade, or `residual`, residual blocks without transposed
    convolutions."""
    base_channels: int = Field(default=64, ge=4, multiple_of=4)
    """Channels of the first stage, a multiple of 4; they double at each halving, up to `max_multiplier` times this."""
    max_multiplier: Annotated[int, AfterValidator(_power_of_two)] = 8
    """Bound on the doubling of channels, a power of two."""
    blocks: int = Field(default=1, ge=0)
    """Residual blocks at each size, in the encoder and in the decoder."""


ModelConfig = Annotated[ConvConfig | ResidualConfig, Field(discriminator="family")]
