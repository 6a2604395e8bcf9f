"""The focal frequency loss equals a plain NumPy implementation of its paper."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unified_vae.losses.focal_frequency import FocalFrequency
from unified_vae.losses.mse import MSE

Images = Callable[..., Tensor]


def by_the_paper(fake: npt.NDArray[np.float64], real: npt.NDArray[np.float64], alpha: float) -> float:
    """Equations 6 to 8 for one image [channels, height, width], the whole spectrum, both images transformed."""
    values = []
    for fake_plane, real_plane in zip(fake, real, strict=True):
        distance = np.abs(np.fft.fft2(fake_plane, norm="ortho") - np.fft.fft2(real_plane, norm="ortho"))
        weight = distance**alpha
        values.append(np.mean(weight / weight.max() * distance**2))
    return float(np.mean(values))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("size", [8, 31, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_equals_numpy(images: Images, normal: Callable[..., Tensor], channels: int, size: int, alpha: float) -> None:
    target = images(2, channels, size)
    for reconstruction in (target + 0.1 * normal(*target.shape), F.avg_pool2d(target, 3, 1, 1)):
        expected = [
            by_the_paper(fake, real, alpha)
            for fake, real in zip(reconstruction.double().numpy(), target.double().numpy(), strict=True)
        ]
        assert FocalFrequency(alpha)(reconstruction, target).tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("size", [31, 32])
def test_without_preference_it_is_the_mean_squared_error(images: Images, size: int) -> None:
    target = images(4, 3, size)
    blurred = F.avg_pool2d(target, 3, 1, 1)
    torch.testing.assert_close(FocalFrequency(0.0)(blurred, target), MSE()(blurred, target), rtol=1e-5, atol=0)


def test_the_weights_take_no_gradient(images: Images) -> None:
    """With weights w held fixed, the gradient is that of mean(w |F|^2): for errors e, 2 e filtered by w, over D."""
    target = images(1, 1, 16)
    x = F.avg_pool2d(target, 3, 1, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(FocalFrequency(1.0)(x, target).sum(), x)
    spectrum = torch.fft.fft2(x.detach() - target, norm="ortho")
    weight = spectrum.abs() / spectrum.abs().max()
    expected = 2 * torch.fft.ifft2(weight * spectrum, norm="ortho").real / target.numel()
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-8)


def test_prefers_the_frequency_that_is_furthest_off() -> None:
    """Two waves of unequal error: the share of the stronger one rises with alpha."""
    x = torch.arange(32) / 32 * 2 * torch.pi
    strong, weak = 0.2 * torch.sin(3 * x).expand(32, 32), 0.1 * torch.sin(7 * x).expand(32, 32)
    target = torch.zeros(1, 1, 32, 32)

    def share(alpha: float) -> float:
        both = FocalFrequency(alpha)((strong + weak)[None, None], target)
        return (FocalFrequency(alpha)(strong[None, None], target) / both).item()

    assert share(0.0) == pytest.approx(4 / 5, rel=1e-4)
    assert share(1.0) == pytest.approx(8 / 9, rel=1e-4)
    assert share(2.0) == pytest.approx(16 / 17, rel=1e-4)
