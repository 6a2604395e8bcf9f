"""Structural terms equal their references: HaarPSI and MS-SSIM those of piq, the others plain NumPy implementations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unified_vae.config.loss import FocalFrequencyConfig, HaarPSIConfig, LaplacianConfig, MSEConfig, MSSSIMConfig
from unified_vae.losses.pixel import MSE
from unified_vae.losses.structural import MSSSIM, FocalFrequency, HaarPSI, Laplacian

Images = Callable[..., Tensor]
HAARPSI = HaarPSI(HaarPSIConfig())


def ms_ssim(size: int) -> MSSSIM:
    return MSSSIM(MSSSIMConfig(), size)


def laplacian(size: int) -> Laplacian:
    return Laplacian(LaplacianConfig(), size)


def focal_frequency(alpha: float) -> FocalFrequency:
    return FocalFrequency(FocalFrequencyConfig(alpha=alpha))


def pair(images: Images, count: int, channels: int, size: int) -> tuple[Tensor, Tensor]:
    """Images blurred by a 3x3 mean, and the images."""
    target = images(count, channels, size)
    return F.avg_pool2d(target, 3, 1, 1), target


HAARPSI_SIZES = [(channels, size) for channels in (1, 3) for size in (16, 28, 31, 32, 64)]
# piq.haarpsi of the fixture's pictures against themselves blurred by a 3x3 mean, averaged over the batch.
HAARPSI_OF_PIQ = {
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


@pytest.mark.parametrize(("channels", "size"), HAARPSI_SIZES)
def test_haarpsi_equals_the_values_of_piq(images: Images, channels: int, size: int) -> None:
    assert 1 - HAARPSI(*pair(images, 4, channels, size)).mean().item() == pytest.approx(
        HAARPSI_OF_PIQ[channels, size], abs=2e-5
    )


@pytest.mark.slow  # importing piq takes 11 s
@pytest.mark.parametrize(("channels", "size"), HAARPSI_SIZES)
def test_haarpsi_equals_piq_image_by_image(
    images: Images, normal: Callable[..., Tensor], channels: int, size: int
) -> None:
    import piq

    blurred, target = pair(images, 4, channels, size)
    noisy = (target + 0.1 * normal(*target.shape)).clamp(0, 1)
    for reconstruction in (blurred, noisy):
        reference = 1 - piq.haarpsi(reconstruction, target, reduction="none")
        torch.testing.assert_close(HAARPSI(reconstruction, target), reference, rtol=0, atol=1e-5)


def test_haarpsi_is_symmetric_and_bounded(images: Images, normal: Callable[..., Tensor]) -> None:
    target, other = images(4, 3, 32), normal(4, 3, 32, 32)
    torch.testing.assert_close(HAARPSI(target, other), HAARPSI(other, target))
    assert (HAARPSI(other, target) <= 1).all()


def test_haarpsi_is_never_negative_and_0_at_identity(images: Images, normal: Callable[..., Tensor]) -> None:
    target = images(4, 3, 32)
    assert (HAARPSI(target, target) == 0).all()
    for size in (1e-7, 1e-6, 1e-5, 1e-4):
        assert (HAARPSI(target + size * normal(4, 3, 32, 32), target) >= 0).all()


def test_haarpsi_sees_a_change_of_hue_that_keeps_the_luma(images: Images) -> None:
    target = images(2, 3, 32)
    luma_free = torch.tensor([0.114, 0.0, -0.299])[:, None, None]  # red up, blue down, Y as before
    assert (HAARPSI(target + 0.5 * luma_free, target) > 0.01).all()


# piq.multi_scale_ssim, with as many scales as fit, of the fixture's pictures blurred by a 3x3 mean.
MS_SSIM_OF_PIQ = {16: 0.770383, 32: 0.953406, 64: 0.979266, 176: 0.992867}


@pytest.mark.parametrize(
    ("size", "scales"), [(10, 0), (11, 1), (20, 1), (21, 2), (28, 2), (64, 3), (128, 4), (160, 4), (161, 5), (512, 5)]
)
def test_ms_ssim_takes_as_many_scales_as_fit(size: int, scales: int) -> None:
    assert len(ms_ssim(size).exponents) == scales


@pytest.mark.parametrize("size", [16, 32, 64, 176])
def test_ms_ssim_equals_the_values_of_piq(images: Images, size: int) -> None:
    assert 1 - ms_ssim(size)(*pair(images, 2, 3, size)).mean().item() == pytest.approx(MS_SSIM_OF_PIQ[size], abs=5e-5)


@pytest.mark.slow  # importing piq takes 11 s
@pytest.mark.parametrize("size", [16, 32, 64, 176])
def test_ms_ssim_equals_piq_image_by_image(images: Images, normal: Callable[..., Tensor], size: int) -> None:
    import piq

    blurred, target = pair(images, 2, 3, size)
    noisy = (target + 0.1 * normal(*target.shape)).clamp(0, 1)
    weights = torch.tensor(MSSSIM.SCALE_WEIGHTS[: len(ms_ssim(size).exponents)])
    for reconstruction in (blurred, noisy):
        reference = 1 - piq.multi_scale_ssim(reconstruction, target, reduction="none", scale_weights=weights)
        torch.testing.assert_close(ms_ssim(size)(reconstruction, target), reference, rtol=0, atol=5e-5)


def test_ms_ssim_of_opposite_structure_has_a_gradient(images: Images) -> None:
    target = images(2, 3, 32)
    inverted = (1 - target).requires_grad_()
    values = ms_ssim(32)(inverted, target)
    (gradient,) = torch.autograd.grad(values.sum(), inverted)
    assert (values > 0.9).all()
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).norm(dim=1) > 0).all()


LAPLACIAN_SIZES = [9, 10, 17, 28, 31, 32, 64]


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
def test_laplacian_levels_are_halved_down_to_the_rest(size: int, expected: list[int]) -> None:
    assert laplacian(size).sides == expected
    assert [level.shape[-1] for level in laplacian(size).pyramid(torch.zeros(1, 1, size, size))] == expected


@pytest.mark.parametrize("size", LAPLACIAN_SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_laplacian_pyramid_reconstructs_the_image(images: Images, size: int, channels: int) -> None:
    target = images(2, channels, size)
    term = laplacian(size)
    *bands, image = term.pyramid(target)
    for band in reversed(bands):
        double = term.get_buffer(f"double_{band.shape[-1]}")
        image = double @ image @ double.T + band
    torch.testing.assert_close(image, target, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", LAPLACIAN_SIZES)
def test_laplacian_filters_keep_flat_images_and_slopes(size: int) -> None:
    halving, doubling = (laplacian(size).get_buffer(f"{name}_{size}") for name in ("halve", "double"))
    flat, slope = torch.ones(size), torch.arange(size, dtype=torch.float32)
    torch.testing.assert_close(halving @ flat, torch.ones((size + 1) // 2))
    torch.testing.assert_close(doubling @ torch.ones((size + 1) // 2), flat)
    torch.testing.assert_close((halving @ slope)[1:-1], slope[::2][1:-1])
    torch.testing.assert_close((doubling @ slope[::2])[2:-3], slope[2:-3])


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
def test_laplacian_equals_a_plain_implementation(images: Images, normal: Callable[..., Tensor], size: int) -> None:
    target = images(1, 2, size)
    reconstruction = target + 0.1 * normal(*target.shape)
    error = (reconstruction - target).double().numpy()[0]
    expected = np.mean([burt_adelson(plane) for plane in error])
    assert laplacian(size)(reconstruction, target).item() == pytest.approx(expected, rel=1e-5)


def test_laplacian_is_exactly_linear_in_the_error(images: Images, normal: Callable[..., Tensor]) -> None:
    target, error = torch.zeros(2, 3, 32, 32), normal(2, 3, 32, 32)
    assert torch.equal(laplacian(32)(2 * error, target), 2 * laplacian(32)(error, target))


def test_laplacian_of_an_enlarged_image_keeps_its_scale(images: Images) -> None:
    """The finest level of an enlarged image is nearly empty; the others are those of the small one."""
    target = images(4, 3, 32)
    blurred = F.avg_pool2d(target, 5, 1, 2)
    large, large_blurred = (F.interpolate(x, scale_factor=2, mode="bicubic") for x in (target, blurred))
    ratio = laplacian(64)(large_blurred, large).mean() / laplacian(32)(blurred, target).mean()
    assert 0.8 < ratio < 1.3


def test_laplacian_sees_lost_detail_more_than_a_shift_of_shade(images: Images) -> None:
    """At the same absolute error."""
    target = images(4, 3, 64)
    blurred = F.avg_pool2d(target, 3, 1, 1)
    shade = (blurred - target).abs().mean((1, 2, 3), keepdim=True)
    term = laplacian(64)
    assert (term(blurred, target) > 1.5 * term(target + shade, target)).all()


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
def test_focal_frequency_equals_numpy(
    images: Images, normal: Callable[..., Tensor], channels: int, size: int, alpha: float
) -> None:
    target = images(2, channels, size)
    for reconstruction in (target + 0.1 * normal(*target.shape), F.avg_pool2d(target, 3, 1, 1)):
        expected = [
            by_the_paper(fake, real, alpha)
            for fake, real in zip(reconstruction.double().numpy(), target.double().numpy(), strict=True)
        ]
        assert focal_frequency(alpha)(reconstruction, target).tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("size", [31, 32])
def test_focal_frequency_at_alpha_0_is_the_mean_squared_error(images: Images, size: int) -> None:
    target = images(4, 3, size)
    blurred = F.avg_pool2d(target, 3, 1, 1)
    torch.testing.assert_close(
        focal_frequency(0.0)(blurred, target), MSE(MSEConfig())(blurred, target), rtol=1e-5, atol=0
    )


def test_focal_frequency_weights_take_no_gradient(images: Images) -> None:
    """With weights w held fixed, the gradient is that of mean(w |F|^2): for errors e, 2 e filtered by w, over D."""
    target = images(1, 1, 16)
    x = F.avg_pool2d(target, 3, 1, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(focal_frequency(1.0)(x, target).sum(), x)
    spectrum = torch.fft.fft2(x.detach() - target, norm="ortho")
    weight = spectrum.abs() / spectrum.abs().max()
    expected = 2 * torch.fft.ifft2(weight * spectrum, norm="ortho").real / target.numel()
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-8)


def test_focal_frequency_prefers_the_worst_frequency() -> None:
    """Two waves of unequal error: the share of the stronger one rises with alpha."""
    x = torch.arange(32) / 32 * 2 * torch.pi
    strong, weak = 0.2 * torch.sin(3 * x).expand(32, 32), 0.1 * torch.sin(7 * x).expand(32, 32)
    target = torch.zeros(1, 1, 32, 32)

    def share(alpha: float) -> float:
        both = focal_frequency(alpha)((strong + weak)[None, None], target)
        return (focal_frequency(alpha)(strong[None, None], target) / both).item()

    assert share(0.0) == pytest.approx(4 / 5, rel=1e-4)
    assert share(1.0) == pytest.approx(8 / 9, rel=1e-4)
    assert share(2.0) == pytest.approx(16 / 17, rel=1e-4)
