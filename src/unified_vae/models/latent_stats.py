"""Mean and spread of a model's latents over its training images: what a model that is trained on them divides by.

The latents are draws z ~ q(z|x), so that a variance is that of the posteriors' means plus the mean of their variances.
The one number for all units is the scaling factor of Rombach et al. 2022 (arXiv 2112.10752, appendix G), 1 / std.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unified_vae.core.posterior import DiagonalGaussian
from unified_vae.core.tensor_file import parse_tensors, write_tensors

STATS = "latent_stats.safetensors"


@dataclass(frozen=True)
class LatentStats:
    """Moments of the latents of training images.

    Attributes:
        mean: [latents], of each unit.
        std: [latents], of each unit.
        images: how many they were measured on.
    """

    mean: Tensor
    std: Tensor
    images: int

    @property
    def shift(self) -> float:
        """Mean over units and images."""
        return float(self.mean.double().mean())

    @property
    def scale(self) -> float:
        """1 / standard deviation over units and images: (z - shift) * scale has mean 0 and variance 1."""
        variance = self.std.double().square() + (self.mean.double() - self.shift).square()
        return 1 / max(math.sqrt(float(variance.mean())), torch.finfo(torch.float32).tiny)

    def normalize(self, latents: Tensor) -> Tensor:
        """Latents [n, latents] with mean 0 and variance 1 in every unit."""
        return (latents - self.mean.to(latents)) / self.std.to(latents)

    def denormalize(self, latents: Tensor) -> Tensor:
        """The inverse of `normalize`."""
        return latents * self.std.to(latents) + self.mean.to(latents)


def measure(posteriors: DiagonalGaussian) -> LatentStats:
    """The statistics of posteriors [n, latents], in float64.

    Raises:
        ArithmeticError: they are not finite.
    """
    means, variances = posteriors.mean.double(), posteriors.logvar.double().exp()
    std = (means.var(0, unbiased=False) + variances.mean(0)).sqrt()
    stats = LatentStats(means.mean(0).float(), std.float(), len(means))
    if not bool(torch.isfinite(stats.mean).all() and torch.isfinite(stats.std).all()):
        raise ArithmeticError("the encoder gives latents that are not finite numbers")
    return stats


def write_stats(folder: Path, stats: LatentStats) -> dict[str, Any]:
    """Write the tensors beside a model; returns what its config file says of them."""
    write_tensors(folder / STATS, {"mean": stats.mean, "std": stats.std})
    return {"images": stats.images, "shift": stats.shift, "scale": stats.scale}


def read_stats(folder: Path, entry: Mapping[str, Any], latents: int) -> LatentStats:
    """What `write_stats` wrote.

    Raises:
        One of TENSOR_FILE_ERRORS: something of it is damaged.
    """
    tensors = parse_tensors((folder / STATS).read_bytes())
    stats = LatentStats(tensors["mean"], tensors["std"], int(entry["images"]))
    if stats.mean.shape != (latents,) or stats.std.shape != (latents,):
        raise ValueError(f"it is of {list(stats.mean.shape)} latents")
    return stats
