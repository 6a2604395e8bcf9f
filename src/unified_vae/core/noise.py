"""The random numbers of a step: functions of (seed, purpose, step) alone, so resume has nothing to restore."""

from __future__ import annotations

import torch
from torch import Tensor

from unified_vae.core.counter import key


def latent_noise(
    seed: int, step: int, batch_size: int, latents: int, rank: int, world_size: int, device: torch.device
) -> Tensor:
    """This rank's share of the standard normal noise of a step, [batch_size // world_size, latents].

    The whole batch's noise is drawn by every rank and cut, so that the result does not depend on how many
    devices share the batch. The stream is that of the device's kind: CPU and CUDA draw different numbers.
    """
    generator = torch.Generator(device=device).manual_seed(key(seed, "latent noise", step) % 2**63)
    noise = torch.randn(batch_size, latents, generator=generator, device=device)
    share = batch_size // world_size
    return noise[rank * share : (rank + 1) * share]


def fixed_noise(seed: int, purpose: str, count: int, latents: int, device: torch.device) -> Tensor:
    """Standard normal noise [count, latents] that stays the same over a run, on every kind of device."""
    generator = torch.Generator().manual_seed(key(seed, purpose) % 2**63)
    return torch.randn(count, latents, generator=generator).to(device)
