"""Copies from host memory to a device."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy host memory to a device; on CUDA without waiting.

    CUDA reads pageable memory before the call returns, and PyTorch keeps pinned memory until its copy is done. MPS does
    neither: what is freed before the copy has run arrives as other bytes (pytorch issues 139550, 189690).
    """
    return values.to(device, non_blocking=device.type == "cuda")
