"""Latents shifted and scaled to mean 0 and variance 1, as latent diffusion takes them.

One shift and one scale for all units (Rombach et al. 2022, arXiv 2112.10752, appendix G), from the model's statistics.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from unified_vae.core.errors import ConfigError
from unified_vae.core.posterior import DiagonalGaussian
from unified_vae.experiment.subject.same_weights import finished_model
from unified_vae.experiment.subject.subject import Subject


@dataclass(frozen=True)
class Scaling:
    """y = (z - shift) * scale."""

    shift: float
    scale: float

    def posterior(self, given: DiagonalGaussian) -> DiagonalGaussian:
        """The posterior of y."""
        return DiagonalGaussian((given.mean - self.shift) * self.scale, given.logvar + 2 * math.log(self.scale))

    def undone(self, scaled: Tensor) -> Tensor:
        """z of y."""
        return scaled / self.scale + self.shift


def scaling_of(subject: Subject) -> Scaling:
    """The scaling that the statistics of the model's latents give.

    Raises:
        ConfigError: these weights have no statistics.
        CheckpointError: the model's folder is damaged.
    """
    finished = finished_model(subject)
    stats = None if finished is None else finished.content.stats
    if stats is None:
        raise ConfigError(
            f"{subject.name} has no statistics of its latents, which --scale needs: a run writes them beside its model "
            "when it is finished"
        )
    return Scaling(stats.shift, stats.scale)
