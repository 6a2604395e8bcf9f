"""What a user may ask of new samples: how many, from which density, with which randomness."""

from __future__ import annotations

import operator
from typing import Any, Literal, SupportsIndex

import torch
from torch import Tensor

from unified_vae.core.errors import ConfigError
from unified_vae.models.density import NormalDensity
from unified_vae.models.vae import VAE

DensityName = Literal["fitted", "normal"]
Randomness = torch.Generator | SupportsIndex | None
"""A generator of the CPU, a seed, or None for PyTorch's own."""


def draw_latents(
    model: VAE, n: SupportsIndex, density: DensityName, temperature: float, generator: Randomness
) -> Tensor:
    """Latents [n, latents] on the CPU.

    Raises:
        ConfigError: there is no such density, or another argument is none.
    """
    count = at_least_one(n, "n")
    if density not in ("fitted", "normal"):
        raise ConfigError(f"there is no density {density!r}: give 'fitted' or 'normal'")
    source = NormalDensity(model.latents) if density == "normal" else model.density
    try:
        return source.sample(count, _generator(generator), temperature)
    except ValueError as problem:
        raise ConfigError(str(problem)) from None


def at_least_one(value: Any, name: str) -> int:
    """A whole number of any kind, NumPy's as well, as an int; raises ConfigError where it is none or below 1."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise ConfigError(f"{name} is {value}: give a whole number of at least 1")
    return number


def _generator(given: Randomness) -> torch.Generator:
    if given is None:
        return torch.default_generator
    if isinstance(given, torch.Generator):
        return given
    try:
        return torch.Generator().manual_seed(operator.index(given))
    except (TypeError, ValueError, RuntimeError):  # no whole number, or beyond 64 bits
        raise ConfigError(f"the generator is {given!r}: give a seed or a torch.Generator") from None
