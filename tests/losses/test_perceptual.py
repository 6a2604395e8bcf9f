"""The VGG perceptual term and LPIPS: equal to the definition, frozen, outside the checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unified_vae.config.loss import LossConfig, LPIPSConfig, PerceptualConfig
from unified_vae.core.distributions import VAEOutput
from unified_vae.core.errors import ConfigError
from unified_vae.losses.build import build_objective
from unified_vae.losses.perceptual import ARCHITECTURES, LPIPS, Backbone, Net, Perceptual, lpips_heads

Images = Callable[..., Tensor]


@pytest.fixture
def pair(images: Images) -> tuple[Tensor, Tensor]:
    target = images(2, 3, 32)
    return F.avg_pool2d(target, 3, 1, 1), target


@pytest.mark.slow  # importing torchmetrics and torchvision takes 15 s
@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_lpips_equals_torchmetrics_on_the_same_backbone(
    net: Net, images: Images, request: pytest.FixtureRequest
) -> None:
    from torchmetrics.functional.image.lpips import _LPIPS

    weights = request.getfixturevalue(f"{net}_weights")
    theirs = _LPIPS(net=net, pnet_rand=True)
    for number in range(1, 6):
        for index, layer in getattr(theirs.net, f"slice{number}").named_children():
            if hasattr(layer, "weight"):
                layer.weight.data.copy_(weights[f"features.{index}.weight"])
                layer.bias.data.copy_(weights[f"features.{index}.bias"])
    ours = LPIPS(LPIPSConfig(net=net), Backbone(net, weights))
    target = images(2, 3, 64)
    for size in (3, 7):
        blurred = F.avg_pool2d(target, size, 1, size // 2)
        reference = theirs(blurred, target, normalize=True).flatten().detach()
        torch.testing.assert_close(ours(blurred, target), reference, rtol=1e-4, atol=1e-7)


def test_lpips_heads_are_the_published_ones() -> None:
    """Non-negative (the authors clip them) and of the backbones' widths."""
    published: dict[Net, list[int]] = {"vgg": [64, 128, 256, 512, 512], "alex": [64, 192, 384, 256, 256]}
    for net, widths in published.items():
        heads = list(lpips_heads(net).values())
        assert [head.shape[1] for head in heads] == widths
        assert all((head >= 0).all() and head.sum() > 0 for head in heads)


def test_perceptual_is_2_minus_2_cosine(pair: tuple[Tensor, Tensor], vgg_weights: dict[str, Tensor]) -> None:
    term = Perceptual(PerceptualConfig(layers=["relu1_2"]), Backbone("vgg", vgg_weights, ["relu1_2"]))

    def features(images: Tensor) -> Tensor:
        mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        x = (images - mean) / std
        for index in (0, 2):
            x = F.conv2d(
                x, vgg_weights[f"features.{index}.weight"], vgg_weights[f"features.{index}.bias"], padding=1
            ).relu()
        return x

    cosine = F.cosine_similarity(*(features(images) for images in pair))
    torch.testing.assert_close(term(*pair), (2 - 2 * cosine).mean((1, 2)), rtol=1e-4, atol=1e-6)


def test_gray_images_count_as_gray_rgb(images: Images, alex_weights: dict[str, Tensor]) -> None:
    term = LPIPS(LPIPSConfig(net="alex"), Backbone("alex", alex_weights))
    target = images(2, 1, 32)
    blurred = F.avg_pool2d(target, 3, 1, 1)
    as_rgb = [x.repeat(1, 3, 1, 1) for x in (blurred, target)]
    torch.testing.assert_close(term(blurred, target), term(*as_rgb), rtol=1e-5, atol=1e-8)


def test_the_backbone_is_frozen_and_not_in_the_checkpoint(
    pair: tuple[Tensor, Tensor], as_output: Callable[..., VAEOutput], vgg_file: Path, alex_file: Path
) -> None:
    config = LossConfig(
        perceptual=PerceptualConfig(weight=0.1, weights_path=str(vgg_file), layers=["relu1_2", "relu2_2"]),
        lpips=LPIPSConfig(weight=0.1, net="alex", weights_path=str(alex_file)),
    )
    objective = build_objective(config, 3, 32).train()
    reconstruction, target = pair[0].clone().requires_grad_(), pair[1]
    output = as_output(reconstruction)
    objective.observe(objective.measure(output, target))
    before = {name: buffer.clone() for name, buffer in objective.named_buffers()}
    value = objective(output, target, 0.0)
    value.loss.backward()
    assert list(objective.parameters()) == []
    assert set(objective.state_dict()) == {
        "observations",
        "beta_multiplier",
        "mean_mse",
        "mean_perceptual",
        "mean_lpips",
    }
    assert reconstruction.grad is not None and reconstruction.grad.abs().sum() > 0
    assert all(torch.equal(before[name], buffer) for name, buffer in objective.named_buffers())
    for name in ("perceptual", "lpips"):  # each one reaches the image by itself, unlike a loss under no_grad
        x = pair[0].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(objective.measure(as_output(x), target)[name], x)
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize(("names", "size"), [(["relu1_2"], 1), (["relu2_2"], 2), (["relu4_3"], 8), (["relu5_3"], 16)])
def test_vgg_needs_one_halving_a_block(names: list[str], size: int) -> None:
    assert ARCHITECTURES["vgg"].minimum_size(names) == size


def test_alexnet_refuses_images_below_its_minimum(
    images: Images, alex_weights: dict[str, Tensor], alex_file: Path
) -> None:
    smallest = ARCHITECTURES["alex"].minimum_size(ARCHITECTURES["alex"].features)
    term = LPIPS(LPIPSConfig(net="alex"), Backbone("alex", alex_weights))
    target = images(1, 3, smallest)
    assert term(target, target).isfinite().all()
    with pytest.raises(RuntimeError):
        term(target[..., 1:, 1:], target[..., 1:, 1:])
    config = LossConfig(lpips=LPIPSConfig(weight=1.0, net="alex", weights_path=str(alex_file)))
    with pytest.raises(ConfigError, match=rf"loss\.lpips needs images of at least {smallest} px"):
        build_objective(config, 3, smallest - 1)


@pytest.mark.parametrize(("name", "size"), [("haarpsi", 15), ("ms_ssim", 10)])
def test_other_terms_refuse_images_that_are_too_small(name: str, size: int) -> None:
    with pytest.raises(ConfigError, match=f"loss.{name} needs images of at least {size + 1} px"):
        build_objective(LossConfig.model_validate({name: {"weight": 1.0}}), 3, size)


@pytest.mark.parametrize("name", ["perceptual", "lpips"])
def test_features_in_bf16_measure_what_those_in_float32_do(
    name: str, images: Images, as_output: Callable[..., VAEOutput], vgg_file: Path, alex_file: Path
) -> None:
    settings = {"perceptual": {"weights_path": str(vgg_file)}, "lpips": {"net": "alex", "weights_path": str(alex_file)}}
    config = LossConfig.model_validate({name: {"weight": 0.1, **settings[name]}})
    target = images(4, 3, 64)
    blurred = F.avg_pool2d(target, 3, 1, 1)

    def measured(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        x = blurred.clone().requires_grad_()
        value = build_objective(config, 3, 64, dtype).measure(as_output(x), target)[name]
        assert value.dtype == torch.float32
        return value, torch.autograd.grad(value, x)[0]

    (value, gradient), (exact, expected) = measured(torch.bfloat16), measured(torch.float32)
    assert value.item() == pytest.approx(exact.item(), rel=0.03) and value.item() != exact.item()
    assert F.cosine_similarity(gradient.flatten(), expected.flatten(), dim=0) > 0.98


@pytest.mark.parametrize("layers", [["relu1_2", "relu4_3"], ["relu5_3"]])
def test_two_terms_on_one_network_share_its_pass(
    layers: list[str], pair: tuple[Tensor, Tensor], as_output: Callable[..., VAEOutput], vgg_file: Path
) -> None:
    """Values are those of each term alone, bit for bit; the gradient is the sum of theirs, up to rounding."""
    settings = {
        "perceptual": {"weight": 0.1, "layers": layers, "weights_path": str(vgg_file)},
        "lpips": {"weight": 0.2, "weights_path": str(vgg_file)},
    }

    def measured(*names: str) -> tuple[dict[str, Tensor], Tensor, int]:
        objective = build_objective(LossConfig.model_validate({name: settings[name] for name in names}), 3, 32)
        passes = []
        for module in {module for module in objective.modules() if isinstance(module, Backbone)}:
            module.register_forward_hook(lambda *_: passes.append(1))
        x = pair[0].clone().requires_grad_()
        values = objective.measure(as_output(x), pair[1])
        (gradient,) = torch.autograd.grad(torch.stack([values[name] for name in names]).sum(), x)
        return values, gradient, len(passes)

    both, gradient, passes = measured("perceptual", "lpips")
    assert passes == 1
    total = torch.zeros_like(gradient)
    for name in settings:
        values, alone, passes = measured(name)
        assert passes == 1 and torch.equal(values[name], both[name])
        total += alone
    assert (gradient - total).norm() < 1e-5 * total.norm()


def test_terms_with_files_of_their_own_share_nothing(vgg_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pth"
    other.symlink_to(vgg_file)
    config = LossConfig.model_validate(
        {
            "perceptual": {"weight": 0.1, "weights_path": str(vgg_file)},
            "lpips": {"weight": 0.1, "weights_path": str(other)},
        }
    )
    modules = build_objective(config, 3, 32).modules()
    assert sum(isinstance(module, Backbone) for module in modules) == 2
