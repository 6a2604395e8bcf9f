"""A copy of a run's tensors in host memory: what training waits for when it saves. The rest happens beside it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from unified_vae.training.checkpoint import Groups


class HostCopy:
    """Host memory that is used again for each copy: taking new memory would cost several times the copying."""

    def __init__(self) -> None:
        self._held: dict[str, dict[str, Tensor]] = {}

    def take(self, groups: Groups) -> Groups:
        """The values at this moment. What an earlier call returned is overwritten."""
        self._held = {name: self._room(name, tensors) for name, tensors in groups.items()}
        for name, tensors in groups.items():
            for key, value in tensors.items():
                # only CUDA is waited for below
                self._held[name][key].copy_(value.detach(), non_blocking=value.is_cuda)
        if any(value.is_cuda for tensors in groups.values() for value in tensors.values()):
            torch.cuda.current_stream().synchronize()
        return self._held

    def release(self) -> None:
        """Leave what the last call returned to its holder."""
        self._held = {}

    def _room(self, name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Memory for a group. It is pinned where it is copied to from a GPU."""
        held = self._held.get(name, {})
        return {
            key: held[key]
            if key in held and (held[key].shape, held[key].dtype) == (value.shape, value.dtype)
            else torch.empty(value.shape, dtype=value.dtype, device="cpu", pin_memory=value.is_cuda)
            for key, value in tensors.items()
        }
