"""N(0, I): the prior of the VAE, and what is sampled from where nothing was fitted."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from unified_vae.config.model import DensityKind
from unified_vae.models.density.base import LatentDensity, Rows, row_normals, standard_log_prob


class NormalDensity(LatentDensity):
    """N(0, I)."""

    kind: ClassVar[DensityKind] = "normal"

    def draw(self, rows: Rows) -> Tensor:
        """See `LatentDensity.draw`."""
        return row_normals(rows, self.latents).to(self.mean)

    def log_prob(self, latents: Tensor) -> Tensor:
        """See `LatentDensity.log_prob`."""
        return standard_log_prob(latents)

    def describe(self) -> str:
        """See `LatentDensity.describe`."""
        return "N(0, I)"
