"""HaarPSI equals the reference implementation of piq, which follows the authors' code."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unified_vae.losses.haarpsi import HaarPSI

Images = Callable[..., Tensor]
SIZES = [(channels, size) for channels in (1, 3) for size in (16, 28, 31, 32, 64)]
# piq.haarpsi of the fixture's pictures against themselves blurred by a 3x3 mean, averaged over the batch.
PIQ_0_8 = {
    (1, 16): 0.699043,
    (1, 28): 0.730827,
    (1, 31): 0.80363,
    (1, 32): 0.727014,
    (1, 64): 0.722946,
    (3, 16): 0.766725,
    (3, 28): 0.786956,
    (3, 31): 0.85092,
    (3, 32): 0.787772,
    (3, 64): 0.811176,
}


def pair(images: Images, channels: int, size: int) -> tuple[Tensor, Tensor]:
    target = images(4, channels, size)
    return F.avg_pool2d(target, 3, 1, 1), target


@pytest.mark.parametrize(("channels", "size"), SIZES)
def test_equals_the_values_of_piq(images: Images, channels: int, size: int) -> None:
    assert 1 - HaarPSI()(*pair(images, channels, size)).mean().item() == pytest.approx(
        PIQ_0_8[channels, size], abs=2e-5
    )


@pytest.mark.slow  # importing piq takes 11 s
@pytest.mark.parametrize(("channels", "size"), SIZES)
def test_equals_piq_image_by_image(images: Images, normal: Callable[..., Tensor], channels: int, size: int) -> None:
    import piq

    blurred, target = pair(images, channels, size)
    noisy = (target + 0.1 * normal(*target.shape)).clamp(0, 1)
    for reconstruction in (blurred, noisy):
        reference = 1 - piq.haarpsi(reconstruction, target, reduction="none")
        torch.testing.assert_close(HaarPSI()(reconstruction, target), reference, rtol=0, atol=1e-5)


def test_is_symmetric_and_bounded(images: Images, normal: Callable[..., Tensor]) -> None:
    target, other = images(4, 3, 32), normal(4, 3, 32, 32)
    torch.testing.assert_close(HaarPSI()(target, other), HaarPSI()(other, target))
    assert (HaarPSI()(other, target) <= 1).all()


def test_is_never_negative_and_exactly_0_at_identity(images: Images, normal: Callable[..., Tensor]) -> None:
    target = images(4, 3, 32)
    assert (HaarPSI()(target, target) == 0).all()
    for size in (1e-7, 1e-6, 1e-5, 1e-4):
        assert (HaarPSI()(target + size * normal(4, 3, 32, 32), target) >= 0).all()


def test_sees_a_change_of_hue_that_keeps_the_luma(images: Images) -> None:
    target = images(2, 3, 32)
    luma_free = torch.tensor([0.114, 0.0, -0.299])[:, None, None]  # red up, blue down, Y as before
    assert (HaarPSI()(target + 0.5 * luma_free, target) > 0.01).all()
