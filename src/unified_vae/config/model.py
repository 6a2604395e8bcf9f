"""Settings of the model families, and of the latent density from which new images are sampled."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from unified_vae.config.base import Config


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

    positions: ClassVar[int] = 1
    """Positions of the latent map; a vector has one."""
    latents_setting: ClassVar[str] = "model.latents"
    """What sets the number of latents at a position."""

    image_size: int = Field(default=64, ge=8, le=1024)
    """Height and width of the images, in pixels. Any size; multiples of 16 waste no computation."""
    latents: int = Field(default=256, ge=1)
    """Number of latent units."""
    base_channels: int = Field(default=64, ge=4)
    """Channels of the first stage; they double at each halving, up to `max_multiplier` times this."""
    max_multiplier: int = Field(default=8, ge=1)
    """Bound on the doubling of channels."""
    pca_init: bool = True
    """Start at the optimal linear VAE of the images (a PCA), with a PCA skip beside the network; false: the
    network alone, from random weights."""
    channels: Channels = "auto"
    """Image channels: 1 (gray), 3 (RGB), or `auto` to follow the data."""

    def max_dimension(self) -> int:
        """Return a size that some weight of the network has at least, so that a file of another model is recognized."""
        return max(self.latents, self.base_channels)


class ConvConfig(_VectorConfig):
    """A plain convolutional VAE with a latent vector: stride-2 convolutions down, transposed ones up."""

    family: Literal["conv"] = "conv"
    """Which architecture: `conv`, the standard one; `residual`, residual blocks without transposed
    convolutions; `spatial`, a map of latents, as latent diffusion takes them."""


class ResidualConfig(_VectorConfig):
    """A residual VAE with a latent vector: pixels move into channels and back, with shortcuts without weights."""

    family: Literal["residual"] = "residual"
    """Which architecture: `conv`, the standard one; `residual`, residual blocks without transposed
    convolutions; `spatial`, a map of latents, as latent diffusion takes them."""
    base_channels: int = Field(default=64, ge=4, multiple_of=4)
    """Channels of the first stage, a multiple of 4; they double at each halving, up to `max_multiplier` times this."""
    max_multiplier: Annotated[int, AfterValidator(_power_of_two)] = 8
    """Bound on the doubling of channels, a power of two."""
    blocks: int = Field(default=0, ge=0)
    """Residual blocks at each size, in the encoder and in the decoder, except at the refinement stage."""
    refine_blocks: int = Field(default=4, ge=0)
    """Residual blocks at the decoder's refinement stage (`refine_resolution`)."""
    pre_encoder_blocks: int = Field(default=2, ge=0)
    """Residual blocks of the network that preprocesses images before the PCA skip encodes them; 0: it takes them as
    they are, as without the PCA initialization."""
    refine_resolution: Literal["pca", "full"] = "pca"
    """`pca`: images are preprocessed, and residuals refined, at the PCA reconstruction's resolution, at most 64 px,
    which is much cheaper for larger images; `full`: at the images' own. No difference up to 64 px, nor without the PCA
    initialization. The blocks work on maps of about half of that size."""
    bottleneck_channels: int | None = Field(default=None, ge=1)
    """Channels of the smallest map where the dense layers meet it, behind a 1x1 convolution, if that is fewer than it
    has; null: 16 beside a PCA skip, which has a dense layer of its own, all without one."""
    attention: bool = False
    """Attention between the positions of the smallest map, in the encoder and in the decoder."""


class SpatialConfig(Config):
    """The KL autoencoder of latent diffusion (Rombach et al. 2022, arXiv 2112.10752): its latents are a map."""

    latents_setting: ClassVar[str] = "model.latent_channels"
    """What sets the number of latents at a position."""
    family: Literal["spatial"] = "spatial"
    """Which architecture: `conv`, the standard one; `residual`, residual blocks without transposed
    convolutions; `spatial`, a map of latents, as latent diffusion takes them."""
    image_size: int = Field(default=256, ge=8, le=1024)
    """Height and width of the images, in pixels, a multiple of `downsample_factor`."""
    downsample_factor: Literal[4, 8, 16] = 8
    """Pixels along a side that one position of the latent map stands for: f of f4, f8, f16."""
    latent_channels: int = Field(default=4, ge=1, le=1024)
    """Latents at each position of the map."""
    base_channels: int = Field(default=128, ge=4)
    """Channels of the first stage."""
    channel_mult: list[Annotated[int, Field(ge=1, le=64)]] | None = Field(default=None, min_length=1)
    """Channels of each stage, in multiples of `base_channels`, from full size to the latents' size; null takes those of
    the paper: 1, 2, 4 for f4; 1, 2, 4, 4 for f8; 1, 1, 2, 2, 4 for f16."""
    layers_per_block: int = Field(default=2, ge=1, le=16)
    """Residual blocks at each size in the encoder; the decoder has one more."""
    attention: bool = True
    """Attention between the positions of the smallest map, in the encoder and in the decoder."""
    quant_convs: bool = True
    """Convolutions of 1x1 beside the latents, as the published f4, f8 and f16 have; Flux and SD3 have none."""
    channels: Channels = "auto"
    """Image channels: 1 (gray), 3 (RGB), or `auto` to follow the data."""

    @model_validator(mode="after")
    def _whole_map(self) -> SpatialConfig:
        size, factor = self.image_size, self.downsample_factor
        if size % factor:
            below = max(size // factor, 1) * factor
            raise ValueError(
                f"image_size {size} is not a multiple of downsample_factor {factor}: give {below} or {below + factor}"
            )
        stages = factor.bit_length()
        if self.channel_mult is not None and len(self.channel_mult) != stages:
            raise ValueError(
                f"channel_mult names {len(self.channel_mult)} stages, and downsample_factor {factor} has {stages}: "
                f"give {stages} numbers, or null"
            )
        return self

    @property
    def side(self) -> int:
        """Height and width of the latent map."""
        return self.image_size // self.downsample_factor

    @property
    def positions(self) -> int:
        """Positions of the latent map."""
        return self.side**2

    @property
    def latents(self) -> int:
        """Number of latent units: channels times positions."""
        return self.latent_channels * self.positions

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage, from full size to the latents' size."""
        factors = self.channel_mult or PAPER_CHANNEL_MULT[self.downsample_factor]
        return tuple(self.base_channels * factor for factor in factors)

    def max_dimension(self) -> int:
        """Return a size that some weight of the network has at least, so that a file of another model is recognized."""
        return max(*self.widths, 2 * self.latent_channels)


PAPER_CHANNEL_MULT = {4: (1, 2, 4), 8: (1, 2, 4, 4), 16: (1, 1, 2, 2, 4)}

VectorConfig = ConvConfig | ResidualConfig
ModelConfig = Annotated[ConvConfig | ResidualConfig | SpatialConfig, Field(discriminator="family")]

DensityKind = Literal["normal", "units", "gaussian", "mixture"]


class DensityConfig(Config):
    """What new images are sampled from: a density fitted, after training, to the latents of training images."""

    fit: Literal["auto", "normal", "units", "gaussian", "mixture"] = "auto"
    """`normal` is N(0, I), the prior; `gaussian` has full covariance and takes a second; `mixture` is of Gaussians;
    `units` is a Gaussian without correlations; `auto` fits all but `units`, which takes half a minute or so on a CPU,
    and takes the one under which held-out latents are likeliest. With more than 2,048 latents it chooses between
    `normal` and `units`."""
    max_images: int = Field(default=20_000, ge=1)
    """Training images that it is fitted to, at most; with their mirror images, where the model was trained on these and
    they are no more together."""
    max_components: int = Field(default=32, ge=1)
    """Gaussians of a mixture, at most; how many is decided by held-out images."""
