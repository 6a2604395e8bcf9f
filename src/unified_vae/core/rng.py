"""Randomness as a pure function of named counters, so that nothing about it has to be saved.

`key` folds (seed, purpose, epoch, step, ...) into 64 bits; `uniforms` and `permutation` expand a key.
`latent_noise` and `fixed_noise` draw by torch, which is imported when they are called.
The mixer is SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), which passes BigCrush; it is vectorized, so that a batch of
images costs one call.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's finalizer: every input bit moves every output bit."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def key(*parts: int | str) -> int:
    """Return 64 bits that depend on every part and on their order, the same on every machine and in every run.

    Args:
        parts: e.g. `key(seed, "latent noise", step)`; the words keep purposes apart.
    """
    text = repr([part if isinstance(part, str) else int(part) for part in parts])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def uniforms(stream: int, indices: npt.ArrayLike, count: int = 1) -> npt.NDArray[np.float64]:
    """Draw uniform numbers in [0, 1), each a function of (stream, index, column) alone.

    Args:
        stream: a `key`.
        indices: shape [n], e.g. the images' numbers in the data set.
        count: numbers per index.

    Returns:
        Array of shape [n, count].
    """
    index = np.asarray(indices, dtype=np.uint64)[:, None]
    column = np.arange(1, count + 1, dtype=np.uint64)[None, :]
    with np.errstate(over="ignore"):
        row = _mix(index * np.uint64(_GOLDEN) + np.uint64(stream & _MASK))
        bits = _mix(row + column * np.uint64(_GOLDEN))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(stream: int, n: int) -> npt.NDArray[np.int64]:
    """Return a random order of range(n) that depends on (stream, n) alone (NumPy's PCG64, stable by policy)."""
    return np.random.Generator(np.random.PCG64(stream & _MASK)).permutation(n)


def latent_noise(
    seed: int, step: int, batch_size: int, latents: int, rank: int, world_size: int, device: torch.device
) -> Tensor:
    """Draw this rank's share of the standard normal noise of a step, [batch_size // world_size, latents].

    The whole batch's noise is drawn by every rank and cut, so that the result does not depend on how many
    devices share the batch. The stream is that of the device's kind: CPU and CUDA draw different numbers.
    """
    import torch

    generator = torch.Generator(device=device).manual_seed(key(seed, "latent noise", step) % 2**63)
    noise = torch.randn(batch_size, latents, generator=generator, device=device)
    local = batch_size // world_size
    return noise[rank * local : (rank + 1) * local]


def fixed_noise(seed: int, purpose: str, count: int, latents: int, device: torch.device) -> Tensor:
    """Draw standard normal noise [count, latents] that stays the same over a run, on every kind of device."""
    import torch

    generator = torch.Generator().manual_seed(key(seed, purpose) % 2**63)
    return torch.randn(count, latents, generator=generator).to(device)
