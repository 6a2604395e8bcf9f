"""Settings of the latent density, from which new pictures are sampled. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from unified_vae.core.config import Config

DensityKind = Literal["normal", "units", "gaussian", "mixture", "flow"]


class DensityConfig(Config):
    """What new pictures are sampled from: a density fitted, after training, to the latents of training images."""

    fit: Literal["auto", "normal", "units", "gaussian", "mixture", "flow"] = "auto"
    """`normal` is N(0, I), the prior; `gaussian` has full covariance and takes a second; `mixture` is of Gaussians;
    `flow` a small normalizing flow; `units` is a Gaussian without correlations; `auto` fits all but
    `units`, which takes a minute or so on a CPU, and takes the one under which latents of images that it was not
    fitted to are likeliest. With more than 2,048 latents it chooses between `normal` and `units`."""
    max_images: int = Field(default=20_000, ge=1)
    """Training images that it is fitted to, at most; with their mirror images, where the model was trained on these and
    they are no more together."""
    max_components: int = Field(default=32, ge=1)
    """Gaussians of a mixture, at most; how many is decided by images that were kept out."""
    flow_steps: int = Field(default=1500, ge=1)
    """Optimizer steps of a flow, at most; it stops when latents that were kept out get no likelier."""
