"""The Laplacian pyramid holds all of an image, and the term is the absolute error of its levels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unified_vae.losses.laplacian import Laplacian, doubling, halving, sides

Images = Callable[..., Tensor]
SIZES = [9, 10, 17, 28, 31, 32, 64]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (9, [9, 5]),
        (16, [16, 8]),
        (17, [17, 9, 5]),
        (28, [28, 14, 7]),
        (64, [64, 32, 16, 8]),
        (100, [100, 50, 25, 13, 7]),
    ],
)
def test_levels_are_halved_down_to_the_rest(size: int, expected: list[int]) -> None:
    assert sides(size) == expected
    assert [level.shape[-1] for level in Laplacian(size).pyramid(torch.zeros(1, 1, size, size))] == expected


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_pyramid_reconstructs_the_image(images: Images, size: int, channels: int) -> None:
    target = images(2, channels, size)
    *bands, image = Laplacian(size).pyramid(target)
    for band in reversed(bands):
        double = doubling(band.shape[-1])
        image = double @ image @ double.T + band
    torch.testing.assert_close(image, target, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_halving_and_doubling_keep_a_flat_image_and_the_middle_of_a_slope(size: int) -> None:
    flat, slope = torch.ones(size), torch.arange(size, dtype=torch.float32)
    torch.testing.assert_close(halving(size) @ flat, torch.ones((size + 1) // 2))
    torch.testing.assert_close(doubling(size) @ torch.ones((size + 1) // 2), flat)
    torch.testing.assert_close((halving(size) @ slope)[1:-1], slope[::2][1:-1])
    torch.testing.assert_close((doubling(size) @ slope[::2])[2:-3], slope[2:-3])


def burt_adelson(error: npt.NDArray[np.float64]) -> float:
    """The term for one plane, written with loops over the filter's taps; borders by the filter's own remainder."""

    def smooth(plane: npt.NDArray[np.float64], known: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        height, width = plane.shape
        total, weight = np.zeros_like(plane), np.zeros_like(plane)
        for dy, row in zip(range(-2, 3), (1, 4, 6, 4, 1), strict=True):
            for dx, column in zip(range(-2, 3), (1, 4, 6, 4, 1), strict=True):
                for y in range(max(0, -dy), min(height, height - dy)):
                    for x in range(max(0, -dx), min(width, width - dx)):
                        total[y, x] += row * column * plane[y + dy, x + dx] * known[y + dy, x + dx]
                        weight[y, x] += row * column * known[y + dy, x + dx]
        return total / weight

    total = 0.0
    while error.shape[0] > 8:
        smaller = smooth(error, np.ones_like(error))[::2, ::2]
        spread, known = np.zeros_like(error), np.zeros_like(error)
        spread[::2, ::2], known[::2, ::2] = smaller, 1
        total += float(np.abs(error - smooth(spread, known)).mean())
        error = smaller
    return total + float(np.abs(error).mean())


@pytest.mark.parametrize("size", [9, 17, 28])
def test_equals_a_plain_implementation(images: Images, normal: Callable[..., Tensor], size: int) -> None:
    target = images(1, 2, size)
    reconstruction = target + 0.1 * normal(*target.shape)
    error = (reconstruction - target).double().numpy()[0]
    expected = np.mean([burt_adelson(plane) for plane in error])
    assert Laplacian(size)(reconstruction, target).item() == pytest.approx(expected, rel=1e-5)


def test_doubling_the_error_doubles_the_term_exactly(images: Images, normal: Callable[..., Tensor]) -> None:
    target, error = torch.zeros(2, 3, 32, 32), normal(2, 3, 32, 32)
    assert torch.equal(Laplacian(32)(2 * error, target), 2 * Laplacian(32)(error, target))


def test_an_enlarged_image_keeps_its_scale(images: Images) -> None:
    """The finest level of an enlarged image is nearly empty; the others are those of the small one."""
    target = images(4, 3, 32)
    blurred = F.avg_pool2d(target, 5, 1, 2)
    large, large_blurred = (F.interpolate(x, scale_factor=2, mode="bicubic") for x in (target, blurred))
    ratio = Laplacian(64)(large_blurred, large).mean() / Laplacian(32)(blurred, target).mean()
    assert 0.8 < ratio < 1.3


def test_sees_lost_detail_more_than_a_shift_of_shade(images: Images) -> None:
    """At the same absolute error."""
    target = images(4, 3, 64)
    blurred = F.avg_pool2d(target, 3, 1, 1)
    shade = (blurred - target).abs().mean((1, 2, 3), keepdim=True)
    term = Laplacian(64)
    assert (term(blurred, target) > 1.5 * term(target + shade, target)).all()
