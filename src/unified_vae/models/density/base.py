"""What every latent density is: something to draw latents from, saved as tensors beside the model.

Draws are functions of the generator's state and the draw's number alone: the same on every device and in whatever
portions they are asked for.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from unified_vae.config.model import DensityKind
from unified_vae.core.counter import key, uniforms

Rows = npt.NDArray[np.int64]
"""[n], a random number for each draw, from which all randomness of that draw follows."""

SMALLEST_UNIFORM = 2.0**-54  # half a step of `uniforms`, so that 0 has a finite place under the normal curve


class LatentDensity(nn.Module, ABC):
    """A density of latents z, [latents].

    Attributes:
        kind: its name in the model's config.
        latents: number of latent units.
        mean: [latents], what temperature 0 gives.
    """

    kind: ClassVar[DensityKind]
    mean: Tensor

    def __init__(self, latents: int) -> None:
        super().__init__()
        self.latents = latents
        self.register_buffer("mean", torch.zeros(latents))

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
        """Draws [count, latents], float32, on the density's device.

        Args:
            temperature: multiplies each draw's distance from the mean; below 1 draws are more usual and less varied.

        Raises:
            ValueError: `temperature` is negative or not finite.
        """
        if not 0 <= temperature < math.inf:
            raise ValueError(f"the temperature is {temperature}: give a number from 0 on, 1 for the density as it is")
        draws = self.draw(row_numbers(count, generator))
        return self.mean + temperature * (draws - self.mean)

    @abstractmethod
    def draw(self, rows: Rows) -> Tensor:
        """A draw [n, latents] for each row number."""

    @abstractmethod
    def log_prob(self, latents: Tensor) -> Tensor:
        """Natural logarithm of the density at latents [n, latents]: [n]."""

    @abstractmethod
    def describe(self) -> str:
        """In words, e.g. `a mixture of 8 Gaussians`."""

    def sizes(self) -> dict[str, int]:
        """The arguments beside `latents` that build a density of this shape."""
        return {}


def row_numbers(count: int, generator: torch.Generator) -> Rows:
    """A random number for each of `count` draws."""
    numbers = torch.randint(2**63 - 1, (count,), generator=generator, device=generator.device)
    rows: Rows = numbers.cpu().numpy()
    return rows


def row_uniforms(rows: Rows, purpose: str, columns: int) -> npt.NDArray[np.float64]:
    """Uniform in (0, 1), [n, columns]; `purpose` keeps the uses of a row apart."""
    return np.maximum(uniforms(key("latent density", purpose), rows, columns), SMALLEST_UNIFORM)


def row_normals(rows: Rows, columns: int) -> Tensor:
    """Standard normal, float32 [n, columns]."""
    return torch.special.ndtri(torch.from_numpy(row_uniforms(rows, "normal", columns))).float()


def standard_log_prob(values: Tensor) -> Tensor:
    """log N(values; 0, I), [n] of [n, dimensions]."""
    return -0.5 * (values.square().sum(1) + values.shape[1] * math.log(2 * math.pi))
