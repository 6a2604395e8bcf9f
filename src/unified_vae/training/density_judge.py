"""How likely latents of images that were kept out are under a latent density: the same draws for all of them."""

from __future__ import annotations

import torch
from torch import Tensor

from unified_vae.core.counter import key
from unified_vae.core.posterior import DiagonalGaussian
from unified_vae.models.density.base import LatentDensity
from unified_vae.models.density.mixture import draw

DRAWS = 4  # from each posterior


def generator(seed: int, purpose: str) -> torch.Generator:
    """The random numbers of a part of the fit."""
    return torch.Generator().manual_seed(key(seed, "density", purpose) % 2**63)


class Judge:
    """Holds draws from the posteriors of images that were kept out.

    Attributes:
        draws: [DRAWS * views * images, latents].
    """

    def __init__(self, kept_out: DiagonalGaussian, seed: int, views: int = 1) -> None:
        """See `fit_gaussian` for the order of the views."""
        self.images = len(kept_out.mean) // views
        source = generator(seed, "kept out")
        self.draws = torch.cat([draw(kept_out, source) for _ in range(DRAWS)])

    @torch.no_grad()
    def log_likelihoods(self, density: LatentDensity) -> Tensor:
        """[images], natural logarithms, each the mean over an image's views and draws."""
        return density.log_prob(self.draws).view(-1, self.images).mean(0)
