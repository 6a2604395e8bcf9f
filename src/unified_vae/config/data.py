"""Settings of the data: where the images come from, how many, the split, the augmentation."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from unified_vae.config.base import Config

FEW_IMAGES_PER_LATENT = 16
"""Fewer training images per latent overfit: CIFAR-10 needs between 6 and 12 for its PCA, portraits 3."""
SHIFT = 0.06  # of the side; 4 of 64 pixels
SHIFTED_IMAGES_PER_LATENT = 4
"""Fewer are shifted: with 256 latents, it brings 200 portraits 0.9 dB and costs 1,600 of them 0.3 (docs/log.md)."""


class AffineConfig(Config):
    """Random rotation, scaling and shifting, with the image mirrored beyond its edges."""

    rotate_degrees: float = Field(default=0.0, ge=0, le=180)
    """Turn by up to this angle, either way."""
    scale: float = Field(default=0.0, ge=0, le=1)
    """Enlarge or shrink by a factor of up to 1 + this; what shrinks is not low-passed, so stay below about 0.2."""
    translate: Annotated[float, Field(ge=0, le=0.5)] | Literal["auto"] = 0.0
    """Shift by up to this part of the side, each way, in whole pixels: alone it loses nothing. `auto` is 0.06 with
    fewer than 4 training images per latent, else 0."""


class CropConfig(Config):
    """A random part of the image, enlarged to the whole."""

    min_scale: float = Field(default=1.0, ge=0.1, le=1)
    """Side of the smallest part, as a part of the image's side; 1 is off. What is enlarged is softer."""


class ColorJitterConfig(Config):
    """Random changes of color. Gray images take brightness and contrast alone."""

    brightness: float = Field(default=0.0, ge=0, le=1)
    """Lighten or darken by up to this part of the pixel range."""
    contrast: float = Field(default=0.0, ge=0, le=1)
    """Multiply the distance from mid gray by 1 plus or minus up to this."""
    saturation: float = Field(default=0.0, ge=0, le=1)
    """Multiply the distance from the pixel's own gray by 1 plus or minus up to this."""


class AugmentConfig(Config):
    """Random changes of the training images, drawn anew each epoch as a function of (seed, epoch, image)."""

    horizontal_flip: bool | Literal["auto"] = False
    """Mirror half of the images. Leave off for text, digits and anything with a handed side. `auto` mirrors all but
    gray images."""
    affine: AffineConfig = AffineConfig()
    crop: CropConfig = CropConfig()
    color_jitter: ColorJitterConfig = ColorJitterConfig()

    def resolve(self, images: int, latents: int, channels: int) -> AugmentConfig:
        """The changes with every `auto` answered.

        Args:
            images: training images.
            latents: numbers that the model keeps of an image.
            channels: of the images: 1 or 3.
        """
        answers: dict[str, object] = {}
        if self.horizontal_flip == "auto":
            answers["horizontal_flip"] = channels > 1
        if self.affine.translate == "auto":
            answers["affine.translate"] = SHIFT if images < SHIFTED_IMAGES_PER_LATENT * latents else 0.0
        return self.replace(**answers)


class DataConfig(Config):
    """What is trained on."""

    source: str = Field(default="builtin", min_length=1)
    """A folder, a .zip or .tar, a .npy or .npz array, `torchvision:NAME`, `hf:owner/name`, or `builtin`."""
    max_images: int | None = Field(default=None, ge=1)
    """Use at most this many training images (the same ones each time); null uses all."""
    validation_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Part kept for validation where the source has no train/ and val/ folders of its own."""
    background: str = Field(default="white", pattern=r"^(white|black|gray|#[0-9a-fA-F]{6})$")
    """Color behind transparent pixels: white, black, gray or #rrggbb."""
    range: Literal["auto"] | list[float] = "auto"
    """Values of black and white in images deeper than 8 bits, e.g. [0, 4095]; others are clipped. `auto` takes the
    whole range of the type, and 0..1 for floats."""
    split_by: Literal["auto", "pixels", "bytes"] = "auto"
    """Keep files of the same pixels, or only those of the same bytes, in one split. `auto` is pixels, and what it was
    for a run that is resumed."""
    max_bad_fraction: float = Field(default=0.1, ge=0, le=1)
    """Stop when more than this part of the files cannot be used."""
    cache_dir: str | None = None
    """Where decoded images are kept; null takes $UNIFIED_VAE_CACHE or the user's cache folder."""
    allow_changed_data: bool = False
    """Continue a run although its images changed since the checkpoint."""
    cache_on_device: Literal["auto"] | bool = "auto"
    """Keep all training images in the GPU's memory; `auto` does where they take at most a quarter of what is free.
    Batches are the same bits."""
    augment: AugmentConfig = AugmentConfig()

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.range != "auto" and (len(self.range) != 2 or not self.range[0] < self.range[1]):
            raise ValueError(f"range: give auto, or the values of black and white, e.g. [0, 4095], not {self.range}")
        return self
