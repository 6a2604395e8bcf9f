"""MS-SSIM equals the reference implementation of piq at every number of scales."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unified_vae.losses.ms_ssim import _SCALE_WEIGHTS, MSSSIM, scales_that_fit

Images = Callable[..., Tensor]
# piq.multi_scale_ssim, with as many scales as fit, of the fixture's pictures blurred by a 3x3 mean.
PIQ_0_8 = {
    16: 0.770383,
    32: 0.953406,
    64: 0.979266,
    176: 0.992867,
}


def pair(images: Images, size: int) -> tuple[Tensor, Tensor]:
    target = images(2, 3, size)
    return F.avg_pool2d(target, 3, 1, 1), target


@pytest.mark.parametrize(
    ("size", "scales"),
    [(10, 0), (11, 1), (20, 1), (21, 2), (28, 2), (64, 3), (128, 4), (160, 4), (161, 5), (512, 5)],
)
def test_takes_as_many_scales_as_fit(size: int, scales: int) -> None:
    assert scales_that_fit(size) == scales


@pytest.mark.parametrize("size", [16, 32, 64, 176])
def test_equals_the_values_of_piq(images: Images, size: int) -> None:
    assert 1 - MSSSIM(size)(*pair(images, size)).mean().item() == pytest.approx(PIQ_0_8[size], abs=5e-5)


@pytest.mark.slow  # importing piq takes 11 s
@pytest.mark.parametrize("size", [16, 32, 64, 176])
def test_equals_piq_image_by_image(images: Images, normal: Callable[..., Tensor], size: int) -> None:
    import piq

    blurred, target = pair(images, size)
    noisy = (target + 0.1 * normal(*target.shape)).clamp(0, 1)
    weights = torch.tensor(_SCALE_WEIGHTS[: scales_that_fit(size)])
    for reconstruction in (blurred, noisy):
        reference = 1 - piq.multi_scale_ssim(reconstruction, target, reduction="none", scale_weights=weights)
        torch.testing.assert_close(MSSSIM(size)(reconstruction, target), reference, rtol=0, atol=5e-5)


def test_opposite_structure_still_has_a_gradient(images: Images) -> None:
    target = images(2, 3, 32)
    inverted = (1 - target).requires_grad_()
    values = MSSSIM(32)(inverted, target)
    (gradient,) = torch.autograd.grad(values.sum(), inverted)
    assert (values > 0.9).all()
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).norm(dim=1) > 0).all()
