"""What holds for every distortion term, each of its own size, color and degree."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unified_vae.config.loss import LossConfig, TermConfig
from unified_vae.losses.base import DistortionTerm
from unified_vae.losses.build import build_objective

Images = Callable[..., Tensor]
NAMES = [name for name in LossConfig.model_fields if isinstance(getattr(LossConfig(), name), TermConfig)]


@pytest.fixture(scope="module")
def term(request: pytest.FixtureRequest) -> DistortionTerm:
    """The term of this name for 32 px images; LPIPS with AlexNet, as VGG serves the perceptual term."""
    settings: dict[str, object] = {"weight": 1.0}
    if request.param == "perceptual":
        vgg_file = str(request.getfixturevalue("vgg_file"))
        settings |= {"weights_path": vgg_file, "layers": ["relu1_2", "relu2_2"]}
    if request.param == "lpips":
        settings |= {"weights_path": str(request.getfixturevalue("alex_file")), "net": "alex"}
    objective = build_objective(LossConfig.model_validate({request.param: settings}), 3, 32)
    built = objective.terms[request.param]
    assert isinstance(built, DistortionTerm)
    return built


every_term = pytest.mark.parametrize("term", NAMES, indirect=True)


@every_term
@pytest.mark.parametrize("channels", [1, 3])
def test_is_0_for_equal_images_and_grows_with_blur(term: DistortionTerm, channels: int, images: Images) -> None:
    target = images(3, channels, 32)
    assert term(target, target).shape == (3,)
    assert term(target, target).abs().max() < 1e-6
    slight, strong = (F.avg_pool2d(target, size, 1, size // 2) for size in (3, 9))
    assert (term(slight, target) > 0).all()
    assert (term(strong, target) > term(slight, target)).all()


@every_term
def test_an_image_does_not_depend_on_its_batch(term: DistortionTerm, images: Images) -> None:
    target = images(3, 3, 32)
    blurred = F.avg_pool2d(target, 3, 1, 1)
    alone = torch.cat([term(blurred[i : i + 1], target[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(term(blurred, target), alone, rtol=1e-4, atol=1e-6)


@every_term
@pytest.mark.parametrize("scale", [0.0, 1e-4, 1.0, 30.0])
def test_gradients_stay_finite_from_identity_to_out_of_range(
    term: DistortionTerm, scale: float, images: Images, normal: Callable[..., Tensor]
) -> None:
    target = images(2, 3, 32)
    reconstruction = (target + scale * normal(2, 3, 32, 32)).requires_grad_()
    values = term(reconstruction, target)
    (gradient,) = torch.autograd.grad(values.sum(), reconstruction)
    assert values.isfinite().all()
    assert gradient.isfinite().all()
    if 0 < scale <= 1:
        assert gradient.abs().sum() > 0


@every_term
@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_flat_images_are_no_trouble(term: DistortionTerm, level: float, images: Images) -> None:
    flat = torch.full((1, 3, 32, 32), level)
    for reconstruction, target in ((flat, flat), (flat, images(1, 3, 32)), (images(1, 3, 32), flat)):
        start = reconstruction.clone().requires_grad_()
        values = term(start, target)
        assert values.isfinite().all()
        assert torch.autograd.grad(values.sum(), start)[0].isfinite().all()


@every_term
def test_descent_on_it_brings_the_images_together(term: DistortionTerm, images: Images) -> None:
    target = images(1, 3, 32)
    x = F.avg_pool2d(target, 5, 1, 2).clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.01)
    before = term(x, target).item()
    for _ in range(12):
        optimizer.zero_grad()
        term(x, target).sum().backward()
        optimizer.step()
    assert term(x, target).item() < 0.8 * before


@every_term
def test_the_degree_is_the_slope_at_usual_errors(
    term: DistortionTerm, images: Images, normal: Callable[..., Tensor]
) -> None:
    """Between 34 and 20 dB, for noise and for blur; drawings are not photographs, so 0.4 of slack."""
    target = images(4, 3, 32)
    blur = F.avg_pool2d(target, 5, 1, 2) - target
    slopes = []
    for error in (normal(4, 3, 32, 32), blur / blur.std()):
        small, large = (term(target + size * error, target).mean().item() for size in (0.02, 0.1))
        slopes.append(math.log(large / small) / math.log(0.1 / 0.02))
    assert sum(slopes) / 2 == pytest.approx(term.degree, abs=0.4)


@every_term
def test_the_floor_is_what_rounding_to_8_bits_leaves(term: DistortionTerm, images: Images) -> None:
    target = images(4, 3, 32)
    rounded = (255 * target).round() / 255
    value = term(rounded, target).mean().item()
    assert 0.1 * term.floor < value < 10 * term.floor
