"""The properties that give beta one meaning, and the running state of the objective."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from unified_vae.config.loss import (
    CalibrationConfig,
    HaarPSIConfig,
    KLConfig,
    L1Config,
    LossConfig,
    MSEConfig,
    MSSSIMConfig,
    is_likelihood,
)
from unified_vae.config.schedule import Constant, Cosine, Linear
from unified_vae.core.distributions import VAEOutput
from unified_vae.losses.build import build_objective
from unified_vae.losses.objective import Objective
from unified_vae.losses.structural import HaarPSI

Images = Callable[..., Tensor]
AsOutput = Callable[..., VAEOutput]
MIX = LossConfig(
    mse=MSEConfig(weight=1.0),
    l1=L1Config(weight=0.1),
    haarpsi=HaarPSIConfig(weight=0.02),
    ms_ssim=MSSSIMConfig(weight=0.02),
    kl=KLConfig(weight=2.0),
)


def calibrated(config: LossConfig, output: VAEOutput, images: Tensor) -> Objective:
    objective = build_objective(config, channels=images.shape[1], image_size=images.shape[2])
    objective.observe(objective.measure(output, images))
    return objective


def weighted(config: LossConfig, by: float) -> LossConfig:
    """All distortion weights times `by`."""
    terms = config.distortion_terms()
    return config.model_copy(
        update={name: term.model_copy(update={"weight": by * term.weight}) for name, term in terms.items()}
    )


def assert_same_gradient(actual: Tensor, expected: Tensor) -> None:
    """Equal up to rounding, which may be large next to an element but not next to the whole."""
    assert (actual - expected).norm() < 1e-5 * expected.norm()


@pytest.fixture
def pair(images: Images, normal: Callable[..., Tensor], as_output: AsOutput) -> tuple[VAEOutput, Tensor]:
    """A noisy reconstruction with gradients, a posterior, and its images."""
    target = images(4, 3, 32)
    reconstruction = (target + 0.05 * normal(4, 3, 32, 32)).requires_grad_()
    mean, logvar = normal(4, 5, seed=1).requires_grad_(), (normal(4, 5, seed=2) - 1).requires_grad_()
    return as_output(reconstruction, mean, logvar), target


def test_l1_alone_is_the_likelihood_of_a_laplace_density(pair: tuple[VAEOutput, Tensor]) -> None:
    output, target = pair
    config = LossConfig(mse=MSEConfig(weight=0.0), l1=L1Config(weight=0.7))
    objective = calibrated(config, output, target)
    scale = (output.reconstruction - target).abs().mean()
    density = torch.distributions.Laplace(output.reconstruction, scale)
    assert objective(output, target, 0.0).nll.item() == pytest.approx(
        -density.log_prob(target).flatten(1).sum(1).mean().item(), rel=1e-5
    )
    assert objective.scale_and_degree(0.0)[1] == 1.0


@pytest.mark.parametrize("factor", [2.0, 0.3])
def test_a_common_factor_of_the_weights_changes_nothing(pair: tuple[VAEOutput, Tensor], factor: float) -> None:
    output, target = pair
    values, gradients = [], []
    for config in (MIX, weighted(MIX, factor)):
        value = calibrated(config, output, target)(output, target, 0.0)
        values.append(value.loss.item())
        gradients.append(torch.autograd.grad(value.loss, [output.reconstruction, output.posterior.mean]))
    assert values[1] == pytest.approx(values[0], rel=1e-6)
    for before, after in zip(*gradients, strict=True):
        assert_same_gradient(after, before)


def test_batch_size_changes_neither_value_nor_gradient(pair: tuple[VAEOutput, Tensor], as_output: AsOutput) -> None:
    output, target = pair
    objective = calibrated(MIX, output, target)

    def value_and_gradient(times: int) -> tuple[Tensor, Tensor]:
        parts = (output.reconstruction, output.posterior.mean, output.posterior.logvar)
        repeated = as_output(*(part.repeat(times, *[1] * (part.dim() - 1)) for part in parts))
        loss = objective(repeated, target.repeat(times, 1, 1, 1), 0.0).loss
        return loss, torch.autograd.grad(loss, output.reconstruction)[0]

    (one, one_gradient), (three, three_gradient) = value_and_gradient(1), value_and_gradient(3)
    torch.testing.assert_close(three, one, rtol=1e-6, atol=0)
    assert_same_gradient(three_gradient, one_gradient)


def test_micro_batches_add_up_to_the_whole_batch(pair: tuple[VAEOutput, Tensor], as_output: AsOutput) -> None:
    output, target = pair
    objective = calibrated(MIX, output, target)
    whole = objective(output, target, 0.0)
    splits = [slice(0, 1), slice(1, 4)]
    parts = []
    for part in splits:
        posterior = output.posterior
        micro = as_output(output.reconstruction[part], posterior.mean[part], posterior.logvar[part])
        parts.append((len(target[part]) / len(target), objective(micro, target[part], 0.0)))
    split_loss = sum(share * value.loss for share, value in parts)
    torch.testing.assert_close(split_loss, whole.loss, rtol=1e-6, atol=0)
    gradients = [torch.autograd.grad(loss, output.reconstruction)[0] for loss in (whole.loss, split_loss)]
    assert_same_gradient(gradients[1], gradients[0])
    for name, mean in whole.terms.items():
        torch.testing.assert_close(sum(share * value.terms[name] for share, value in parts), mean, rtol=1e-5, atol=0)


def test_enlarged_images_keep_distortion_per_value_and_rate(
    images: Images, normal: Callable[..., Tensor], as_output: AsOutput
) -> None:
    """64 to 128 px. Pixel errors are exactly the same; the indices, which look at fixed numbers of pixels,
    find an enlarged edge smoother, which is worth a quarter of a nat a value."""
    target = images(2, 3, 64)
    reconstruction = F.avg_pool2d(target, 5, 1, 2)  # blurred, as a VAE does
    mean = normal(2, 8)
    for config, tolerance in ((LossConfig(), 1e-5), (MIX, 0.3)):
        values = {}
        for times in (1, 2):
            enlarged = [F.interpolate(x, scale_factor=times, mode="nearest") for x in (reconstruction, target)]
            output = as_output(enlarged[0], mean)
            objective = calibrated(config, output, enlarged[1])
            values[times] = (objective(output, enlarged[1], 0.0), objective.dimensions)
        (small, d_small), (large, d_large) = values[1], values[2]
        assert d_large == 4 * d_small
        assert large.nll.item() / d_large == pytest.approx(small.nll.item() / d_small, abs=tolerance)
        assert large.rate.item() == small.rate.item()


@pytest.mark.parametrize("name", ["mse", "l1", "haarpsi", "ms_ssim"])
def test_every_term_and_the_kl_have_their_gradients(pair: tuple[VAEOutput, Tensor], name: str) -> None:
    output, target = pair
    config = weighted(LossConfig(), 0.0).model_copy(update={name: getattr(MIX, name)})
    loss = calibrated(config, output, target)(output, target, 0.0).loss
    inputs = [output.reconstruction, output.posterior.mean, output.posterior.logvar]
    for gradient in torch.autograd.grad(loss, inputs):
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0


def test_a_term_of_weight_0_is_neither_built_nor_computed(
    pair: tuple[VAEOutput, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def computed(*_: Tensor) -> Tensor:
        raise RuntimeError("computed")

    monkeypatch.setattr(HaarPSI, "forward", computed)
    output, target = pair
    off = MIX.model_copy(update={"haarpsi": HaarPSIConfig(weight=0.0)})
    objective = calibrated(off, output, target)
    assert set(objective(output, target, 0.0).terms) == {"mse", "l1", "ms_ssim"}
    assert not any(isinstance(module, HaarPSI) for module in objective.modules())
    with pytest.raises(RuntimeError, match="computed"):
        calibrated(MIX, output, target)


def test_validation_uses_the_same_objective_and_leaves_no_trace(pair: tuple[VAEOutput, Tensor]) -> None:
    output, target = pair
    objective = calibrated(MIX, output, target)
    before = copy.deepcopy(objective.state_dict())
    training = objective.train()(output, target, 0.3)
    validation = objective.eval()(output, target, 0.3)
    assert torch.equal(training.loss, validation.loss)
    assert torch.equal(training.nll, validation.nll)
    assert all(torch.equal(before[key], value) for key, value in objective.state_dict().items())


def test_equal_images_give_finite_values_and_gradients(images: Images, as_output: AsOutput) -> None:
    target = images(2, 3, 32)
    output = as_output(target.clone().requires_grad_())
    objective = calibrated(MIX, output, target)
    loss = objective(output, target, 0.0).loss
    assert loss.isfinite()
    assert torch.autograd.grad(loss, output.reconstruction)[0].isfinite().all()
    assert objective.sigma() == pytest.approx((1 / 255) / math.sqrt(12))  # the floor: 8-bit rounding


def test_low_precision_pixels_get_the_float32_objective(pair: tuple[VAEOutput, Tensor]) -> None:
    output, target = pair
    low = VAEOutput(output.reconstruction.bfloat16(), output.posterior, output.latents)
    same = VAEOutput(low.reconstruction.float(), output.posterior, output.latents)
    objective = calibrated(MIX, output, target)
    with torch.autocast("cpu", torch.bfloat16):
        inside = objective(low, target, 0.0)
    assert inside.loss.dtype == torch.float32
    assert torch.equal(inside.loss, objective(same, target, 0.0).loss)
    assert torch.autograd.grad(inside.loss, output.reconstruction)[0].isfinite().all()


def test_a_loss_before_calibration_is_refused(pair: tuple[VAEOutput, Tensor]) -> None:
    output, target = pair
    fresh = build_objective(MIX, channels=3, image_size=32)
    with pytest.raises(AssertionError, match="observe"):
        fresh(output, target, 0.0)
    assert fresh.sigma() is None
    assert fresh.shares(0.0) == {}


def test_the_state_returns_bit_for_bit_and_continues_alike(pair: tuple[VAEOutput, Tensor]) -> None:
    output, target = pair
    objective = calibrated(MIX, output, target)
    for step in range(5):
        objective.observe({name: torch.tensor(0.1 / (step + 3)) for name in objective.terms})
    resumed = build_objective(MIX, channels=3, image_size=32)
    resumed.load_state_dict(copy.deepcopy(objective.state_dict()))
    for _ in range(3):
        values = [each(output, target, 0.5) for each in (objective, resumed)]
        assert torch.equal(values[0].loss, values[1].loss)
        for each, value in zip((objective, resumed), values, strict=True):
            each.observe(value.terms)
        assert all(torch.equal(objective.state_dict()[key], value) for key, value in resumed.state_dict().items())


def test_the_state_is_the_running_means_alone(pair: tuple[VAEOutput, Tensor]) -> None:
    objective = calibrated(MIX, *pair)
    assert set(objective.state_dict()) == {
        "observations",
        "beta_multiplier",
        "mean_mse",
        "mean_l1",
        "mean_haarpsi",
        "mean_ms_ssim",
    }
    assert list(objective.parameters()) == []


def test_the_running_mean_starts_at_the_first_value() -> None:
    objective = build_objective(LossConfig(calibration=CalibrationConfig(decay=0.9)), channels=1, image_size=16)
    expected = None
    for count in range(200):
        value = 0.01 + 1 / (1 + count)
        decay = min(0.9, (1 + count) / (10 + count))
        expected = value if expected is None else decay * expected + (1 - decay) * value
        objective.observe({"mse": torch.tensor(value)})
        assert objective.scale_and_degree(0.0)[0].item() == pytest.approx(expected, rel=1e-5)
    assert objective.sigma() == pytest.approx(math.sqrt(expected), rel=1e-5)


def test_a_mix_has_the_degree_of_its_shares(pair: tuple[VAEOutput, Tensor]) -> None:
    config = LossConfig(mse=MSEConfig(weight=1.0), l1=L1Config(weight=0.5))
    objective = build_objective(config, channels=3, image_size=32)
    objective.observe({"mse": torch.tensor(0.03), "l1": torch.tensor(0.02)})  # shares 3/4 and 1/4
    assert float(objective.scale_and_degree(0.0)[1]) == pytest.approx(0.75 * 2 + 0.25 * 1)
    assert objective.shares(0.0) == pytest.approx({"mse": 0.75, "l1": 0.25})
    # Euler: p is the slope of log E against the log of the error's size.
    output, target = pair
    error = output.reconstruction.detach() - target

    def energy(size: float) -> float:
        return (size * error).square().mean().item() + 0.5 * (size * error).abs().mean().item()

    objective = calibrated(config, output, target)
    slope = (math.log(energy(1.01)) - math.log(energy(0.99))) / (math.log(1.01) - math.log(0.99))
    assert float(objective.scale_and_degree(0.0)[1]) == pytest.approx(slope, rel=1e-3)


def test_weights_follow_their_schedules() -> None:
    config = LossConfig(
        l1=L1Config(weight=0.4, schedule=Linear(warmup=0.5)), kl=KLConfig(weight=2.0, schedule=Cosine(warmup=0.2))
    )
    objective = build_objective(config, channels=3, image_size=32)
    assert objective.weights(0.0) == {"mse": 1.0, "l1": 0.0}
    assert objective.weights(0.25) == {"mse": 1.0, "l1": 0.2}
    assert objective.beta(0.0) == 0.0
    assert objective.beta(0.1) == pytest.approx(1.0)
    assert objective.beta(1.0) == 2.0
    assert objective.warmup_end() == 0.5


def test_a_start_without_any_distortion_is_refused() -> None:
    with pytest.raises(ValidationError, match="warmed up from 0"):
        LossConfig(mse=MSEConfig(schedule=Linear()), l1=L1Config(weight=1.0, schedule=Cosine()))
    assert LossConfig(mse=MSEConfig(schedule=Linear(start=0.1)), l1=L1Config(weight=1.0, schedule=Cosine()))
    assert LossConfig(mse=MSEConfig(schedule=Constant()), l1=L1Config(weight=1.0, schedule=Cosine()))


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"mse": 2.0}, True),
        ({"mse": 0.0, "l1": 0.5}, True),
        ({"mse": 1.0, "l1": 0.5}, False),
        ({"mse": 1.0, "haarpsi": 1e-6}, False),
        ({"mse": 0.0, "charbonnier": 1.0}, False),
        ({"mse": 0.0, "laplacian": 1.0}, False),
    ],
)
def test_only_mse_or_l1_alone_is_a_likelihood(weights: dict[str, float], expected: bool) -> None:
    config = LossConfig.model_validate({name: {"weight": weight} for name, weight in weights.items()})
    assert build_objective(config, channels=3, image_size=32).is_likelihood == expected
    assert is_likelihood(config.model_dump()) == expected, "as a record has it"


def test_bits_per_dim_count_8_bit_pixels(images: Images, as_output: AsOutput) -> None:
    """The peak of a Gaussian as wide as rounding errors, in bits for a cell of 1/256."""
    target = images(2, 1, 16)
    objective = build_objective(LossConfig(), channels=1, image_size=16)
    objective.observe({"mse": torch.tensor((1 / 255) ** 2 / 12)})
    value = objective(as_output(target), target, 0.0)
    sigma = (256 / 255) / math.sqrt(12)  # in cells
    assert objective.bits_per_dim(value.nll, value.rate).item() == pytest.approx(
        0.5 * math.log2(2 * math.pi * sigma**2), abs=1e-4
    )
