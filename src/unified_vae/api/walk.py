"""Ways from one latent vector to another."""

from __future__ import annotations

import torch
from torch import Tensor

from unified_vae.core.errors import ConfigError

SMALLEST_ANGLE = 1e-4  # radians, below which a turn is a straight line to float32


def walk(a: Tensor, b: Tensor, n: int, spherical: bool = False) -> Tensor:
    """`n` points [n, latents] from `a` to `b`, [latents] each, both included.

    Args:
        spherical: slerp about the origin (Shoemake 1985; White 2016, arXiv 1609.04468) instead of a straight line.

    Raises:
        ConfigError: `n` is below 2.
    """
    if n < 2:
        raise ConfigError(f"a walk of {n} images is none: give at least 2")
    t = torch.linspace(0, 1, n, device=a.device, dtype=torch.float64)[:, None]
    first, last = a.double(), b.double()
    points = _turned(first, last, t) if spherical else (1 - t) * first + t * last
    points = points.float()
    points[0], points[-1] = a, b
    return points


def _turned(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    cosine = torch.dot(a, b) / (a.norm() * b.norm()).clamp_min(torch.finfo(a.dtype).tiny)
    angle = torch.acos(cosine.clamp(-1, 1))
    if min(float(angle), torch.pi - float(angle)) < SMALLEST_ANGLE:  # also for opposite ends, which name no plane
        return (1 - t) * a + t * b
    return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)
