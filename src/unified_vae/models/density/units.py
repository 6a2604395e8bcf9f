"""Each unit's own mean and deviation, the units independent: for latents that are too many for a covariance.

Draws have the right spread in each unit and none of the agreement between neighbours. A map of thousands of latents is
sampled well only by a model of such maps, which is what latent diffusion trains.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from unified_vae.config.model import DensityKind
from unified_vae.core.posterior import DiagonalGaussian
from unified_vae.models.density.base import LatentDensity, Rows, row_normals, standard_log_prob

SMALLEST_VARIANCE = 1e-12


class UnitsDensity(LatentDensity):
    """N(mean, diag(std^2)).

    Attributes:
        std: [latents].
    """

    kind: ClassVar[DensityKind] = "units"
    std: Tensor

    def __init__(self, latents: int) -> None:
        super().__init__(latents)
        self.register_buffer("std", torch.ones(latents))

    def draw(self, rows: Rows) -> Tensor:
        """See `LatentDensity.draw`."""
        return self.mean + self.std * row_normals(rows, self.latents).to(self.mean)

    def log_prob(self, latents: Tensor) -> Tensor:
        """See `LatentDensity.log_prob`."""
        return standard_log_prob((latents - self.mean) / self.std) - self.std.log().sum()

    def describe(self) -> str:
        """See `LatentDensity.describe`."""
        return "a Gaussian without correlations"


def fit_units(posteriors: DiagonalGaussian) -> UnitsDensity:
    """The mean of each unit of q(z), and its variance: that of the posteriors' means plus the mean of theirs."""
    means, variances = posteriors.mean.double(), posteriors.logvar.double().exp()
    density = UnitsDensity(means.shape[1])
    density.mean.copy_(means.mean(0))
    whole = means.var(0, unbiased=False) + variances.mean(0)
    density.std.copy_(whole.clamp_min(SMALLEST_VARIANCE).sqrt())
    return density
