"""The Charbonnier distance equals its definition, also where float32 would lose it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unified_vae.config.loss import CharbonnierConfig, L1Config, MSEConfig
from unified_vae.losses.pixel import L1, MSE, Charbonnier

Images = Callable[..., Tensor]


@pytest.mark.parametrize("epsilon", [1e-4, 1e-3, 5e-3])
@pytest.mark.parametrize("error", [0.0, 1e-6, 1e-4, 1e-2, 0.3, 5.0])
def test_is_the_closed_form_for_one_error_everywhere(epsilon: float, error: float) -> None:
    zeros = torch.zeros(2, 3, 4, 4)
    expected = (error**2 + epsilon**2) ** 0.5 - epsilon  # in double precision
    assert Charbonnier(CharbonnierConfig(epsilon=epsilon))(zeros + error, zeros).tolist() == pytest.approx(
        [expected] * 2, rel=2e-6
    )


def test_is_the_mean_over_pixel_values_of_each_image(images: Images, normal: Callable[..., Tensor]) -> None:
    target = images(3, 3, 16).double()
    error = 0.1 * normal(3, 3, 16, 16).double()
    expected = ((error**2 + 1e-6).sqrt() - 1e-3).mean((1, 2, 3))
    torch.testing.assert_close(Charbonnier(CharbonnierConfig(epsilon=1e-3))(target + error, target), expected)


def test_lies_between_the_parabola_and_the_absolute_error(images: Images, normal: Callable[..., Tensor]) -> None:
    target = images(3, 3, 16)
    for size, epsilon in ((1e-4, 5e-3), (0.1, 1e-4)):
        value = Charbonnier(CharbonnierConfig(epsilon=epsilon))(target + size * normal(*target.shape), target)
        absolute = L1(L1Config())(target + size * normal(*target.shape), target)
        parabola = MSE(MSEConfig())(target + size * normal(*target.shape), target) / (2 * epsilon)
        assert (value < absolute).all()
        assert (value < parabola).all()
        nearest = parabola if size < epsilon else absolute
        torch.testing.assert_close(value, nearest, rtol=0.01, atol=0)
