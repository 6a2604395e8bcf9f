"""Copies to and from MPS wait: there, memory that is freed too early arrives as other bytes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import unified_vae
from unified_vae.config.data import AffineConfig, AugmentConfig, ColorJitterConfig
from unified_vae.core.device import to_device
from unified_vae.data.augment import augment
from unified_vae.data.batches import gather_cached
from unified_vae.training.checkpointer import PinnedStaging

STRONG = AugmentConfig(
    horizontal_flip=True,
    affine=AffineConfig(rotate_degrees=5),
    color_jitter=ColorJitterConfig(brightness=0.1, saturation=0.1),
)


class CopiesSeen(TorchDispatchMode):
    """Notes, for each copy between a device and the host, whether it waits."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name, result = function.overloadpacket.__name__, function(*args, **kwargs)
        if name == "_to_copy" and result.device != args[0].device:
            self.waits.append(not kwargs.get("non_blocking", False))
        elif name == "copy_" and args[0].device != args[1].device:
            self.waits.append(not (kwargs.get("non_blocking") or (len(args) > 2 and args[2])))
        return result


def load(device):
    to_device(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), device)


def load_cached(device):
    images = torch.zeros(9, 8, 8, 3, dtype=torch.uint8, device=device)
    gather_cached(images, torch.tensor([3, 1]))


def augment_batch(device):
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8, device=device)
    augment(images, np.arange(4), config=STRONG, seed=0, epoch=0)


def save(device):
    PinnedStaging().copy_({"model": {"weight": torch.zeros(3, device=device)}})


# PyTorch without MPS cannot index even fake tensors of it: augmentation runs on another device that is not CUDA
@pytest.mark.parametrize(
    ("work", "device", "copies"),
    [(load, "mps:0", 1), (load_cached, "mps:0", 1), (save, "mps:0", 1), (augment_batch, "meta", 6)],
)
def test_copies_to_and_from_mps_wait(work, device, copies):
    with FakeTensorMode(allow_non_fake_inputs=True), CopiesSeen() as seen:
        work(torch.device(device))
    assert seen.waits == [True] * copies


def test_images_reach_cuda_without_waiting():
    with FakeTensorMode(allow_non_fake_inputs=True), CopiesSeen() as seen:
        load(torch.device("cuda:0"))
    assert seen.waits == [False]


def test_no_other_code_copies_without_waiting():
    root = Path(unified_vae.__file__).parent
    files = [path for path in root.rglob("*.py") if "non_blocking" in path.read_text(encoding="utf-8")]
    assert {path.relative_to(root).as_posix() for path in files} == {"core/device.py", "training/checkpointer.py"}
