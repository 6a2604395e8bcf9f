"""Free bits, capacity and GECO: what each does to the gradient, and where each ends; KL weights of other trainers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import numpy.typing as npt
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from unified_vae.config.loss import (
    Capacity,
    FreeBits,
    Geco,
    KLConfig,
    KLReduction,
    LossConfig,
    RateConstraint,
    Unconstrained,
)
from unified_vae.config.schedule import Linear as Warmup
from unified_vae.core.distributions import DiagonalGaussian, VAEOutput
from unified_vae.core.linear_vae import optimum
from unified_vae.losses.build import build_objective
from unified_vae.losses.kl import L1_PER_SIGMA, capacity_at, constrained_kl, equivalent_linear_vae, kl_per_image
from unified_vae.losses.objective import Objective


def posterior(seed: int = 0, latents: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(16, latents, generator=generator) * torch.tensor([0.05, 0.1, 1.0, 2.0])[:latents]
    return mean.requires_grad_(), torch.full((16, latents), -0.05, requires_grad=True)


def test_free_bits_stop_gradients_below_the_bound_only() -> None:
    mean, logvar = posterior()
    (bounded,) = torch.autograd.grad(
        constrained_kl(DiagonalGaussian(mean, logvar).kl_per_unit(), FreeBits(nats_per_unit=0.1), 0), mean
    )
    (plain,) = torch.autograd.grad(kl_per_image(DiagonalGaussian(mean, logvar)).mean(), mean)
    free = DiagonalGaussian(mean, logvar).kl_per_unit().mean(0) < 0.1
    assert free.tolist() == [True, True, False, False]
    assert not bounded[:, free].any()
    assert torch.equal(bounded[:, ~free], plain[:, ~free])


@pytest.mark.parametrize(("nats", "direction"), [(0.0, 1.0), (1000.0, -1.0)])
def test_capacity_pulls_the_rate_to_its_target_from_both_sides(nats: float, direction: float) -> None:
    mean, logvar = posterior()
    target = Capacity(capacity=nats, initial_capacity=0.0, warmup=1.0)
    (pulled,) = torch.autograd.grad(constrained_kl(DiagonalGaussian(mean, logvar).kl_per_unit(), target, 1.0), mean)
    (plain,) = torch.autograd.grad(kl_per_image(DiagonalGaussian(mean, logvar)).mean(), mean)
    torch.testing.assert_close(pulled, direction * plain)


def test_the_capacity_grows_in_a_line_and_stays() -> None:
    target = Capacity(capacity=200.0, initial_capacity=20.0, warmup=0.5)
    assert [capacity_at(target, t) for t in (0.0, 0.25, 0.5, 1.0)] == [20.0, 110.0, 200.0, 200.0]


@pytest.mark.parametrize("constraint", [FreeBits(nats_per_unit=0.1), Capacity(capacity=1.0, warmup=0.1)])
def test_micro_batches_add_up_on_the_same_side_of_the_kink(constraint: RateConstraint) -> None:
    mean, logvar = posterior()

    def price(part: slice, constraint: RateConstraint) -> Tensor:
        return constrained_kl(DiagonalGaussian(mean[part], logvar[part]).kl_per_unit(), constraint, 1.0)

    halves = (price(slice(0, 8), constraint) + price(slice(8, 16), constraint)) / 2
    whole = price(slice(0, 16), constraint)
    torch.testing.assert_close(halves, whole)
    gradients = [torch.autograd.grad(value, mean, retain_graph=True)[0] for value in (halves, whole)]
    torch.testing.assert_close(*gradients)
    between = Capacity(capacity=kl_per_image(DiagonalGaussian(mean, logvar)).mean().item(), warmup=0.1)
    assert (price(slice(0, 8), between) + price(slice(8, 16), between)) / 2 > price(slice(0, 16), between)


class Linear(nn.Module):
    """A linear VAE of data with four directions; its best errors and rates are known."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.into, self.out = nn.Linear(48, 4), nn.Linear(4, 48)
        self.logvar = nn.Parameter(torch.zeros(4))

    def forward(self, images: Tensor, noise: Tensor) -> VAEOutput:
        posterior = DiagonalGaussian(self.into(images.flatten(1)), self.logvar.expand(len(images), -1))
        latents = posterior.sample(noise)
        return VAEOutput(self.out(latents).view_as(images), posterior, latents)


@functools.cache
def trained(kl: KLConfig, steps: int = 1200) -> tuple[float, float, Objective]:
    """(dB of decoded draws, nats, objective) at the end of training."""
    generator = torch.Generator().manual_seed(1)
    directions = torch.linalg.qr(torch.randn(48, 4, generator=generator))[0].T
    strengths = torch.tensor([1.0, 0.6, 0.4, 0.2])
    model = Linear()
    objective = build_objective(LossConfig(kl=kl), 3, 4)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    rates, errors = [], []
    for step in range(steps):
        coordinates = torch.randn(64, 4, generator=generator) * strengths
        noise = 0.01 * torch.randn(64, 48, generator=generator)
        images = (0.5 + coordinates @ directions + noise).view(64, 3, 4, 4)
        output = model(images, torch.randn(64, 4, generator=generator))
        if step == 0:
            objective.observe(objective.measure(output, images))
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / steps) + 1e-4
        value = objective(output, images, step / steps)
        optimizer.zero_grad()
        value.loss.backward()
        optimizer.step()
        objective.observe(value.terms)
        if step > 0.9 * steps:
            rates.append(float(value.rate))
            errors.append(float(value.terms["mse"]))
    return -10 * math.log10(sum(errors) / len(errors)), sum(rates) / len(rates), objective


@pytest.mark.parametrize(("nats", "start"), [(4.0, 0.0), (14.0, 4.0)])
def test_training_ends_at_the_capacity(nats: float, start: float) -> None:
    """The plain ELBO ends between the two."""
    held = KLConfig(weight=10.0, constraint=Capacity(capacity=nats, initial_capacity=start, warmup=0.3))
    assert trained(held, 600)[1] == pytest.approx(nats, rel=0.05)
    assert 4.5 < trained(KLConfig(weight=1.0), 600)[1] < 13.0


@pytest.mark.parametrize("start", [0.2, 20.0])
def test_geco_meets_its_target_from_both_sides(start: float) -> None:
    psnr, _, objective = trained(KLConfig(weight=start, constraint=Geco(psnr=28.0)))
    assert psnr == pytest.approx(28.0, abs=0.3)
    assert objective.beta(1.0) != start


def test_geco_spends_no_more_nats_than_its_target_needs() -> None:
    good_enough = trained(KLConfig(weight=1.0, constraint=Geco(psnr=28.0)))
    too_good = trained(KLConfig(weight=0.5))
    assert too_good[0] > good_enough[0] + 1
    assert good_enough[1] < 0.8 * too_good[1]


def test_the_multiplier_is_saved_to_the_bit() -> None:
    _, _, objective = trained(KLConfig(weight=1.0, constraint=Geco(psnr=28.0)), 50)
    again = build_objective(objective.config, 3, 4)
    again.load_state_dict(objective.state_dict())
    assert torch.equal(again.beta_multiplier, objective.beta_multiplier) and float(again.beta_multiplier) != 1
    assert again.beta(0.5) == objective.beta(0.5)


def test_beta_moves_against_the_error_and_within_its_bounds() -> None:
    kl = KLConfig(weight=2.0, constraint=Geco(psnr=20.0, min_beta=1.0, max_beta=3.0))
    ends = {}
    for error in (0.02, 0.01, 0.005):
        objective = build_objective(LossConfig(kl=kl), 3, 4)
        betas = []
        for _ in range(200):
            objective.observe({"mse": torch.tensor(error)})
            betas.append(objective.beta(1.0))
        assert betas[0] == 2.0, "the untrained model's error says nothing"
        assert betas == sorted(betas, reverse=error > 0.01)
        ends[error] = betas[-1]
    assert ends == pytest.approx({0.02: 1.0, 0.01: 2.0, 0.005: 3.0})


def test_the_schedule_of_beta_is_a_factor_of_what_geco_found() -> None:
    kl = KLConfig(weight=2.0, schedule=Warmup(warmup=0.5), constraint=Geco(psnr=20.0))
    objective = build_objective(LossConfig(kl=kl), 3, 4)
    for _ in range(5):
        objective.observe({"mse": torch.tensor(0.02)})
    assert objective.beta(0.0) == 0
    assert objective.beta(0.25) == pytest.approx(objective.beta(1.0) / 2)
    assert 0 < objective.beta(1.0) < 2


def test_a_step_with_geco_never_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device `meta` there are no values to wait for: reading one would fail."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which does not know this device
    objective = build_objective(LossConfig(kl=KLConfig(constraint=Geco())), 3, 4)
    objective.observe({"mse": torch.tensor(0.1)})
    objective.to("meta")
    images, latents = torch.empty(2, 3, 4, 4, device="meta"), torch.empty(2, 4, device="meta")
    value = objective(VAEOutput(images, DiagonalGaussian(latents, latents), latents), images, 0.5)
    objective.observe(value.terms)
    assert objective.beta_multiplier.is_meta and value.loss.is_meta


@pytest.mark.parametrize(
    ("constraint", "end"), [(FreeBits(), 0.1), (Capacity(warmup=0.4), 0.4), (Geco(), 1.0)], ids=lambda value: str(value)
)
def test_warmup_ends_when_the_constraint_no_longer_moves(constraint: RateConstraint, end: float) -> None:
    kl = KLConfig(schedule=Warmup(warmup=0.1), constraint=constraint)
    assert build_objective(LossConfig(kl=kl), 3, 4).warmup_end() == end


def test_without_geco_the_multiplier_stays_one() -> None:
    assert float(trained(KLConfig(weight=1.0), 20)[2].beta_multiplier) == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mse": {"weight": 0.0}, "l1": {"weight": 1.0}, "kl": {"constraint": {"kind": "geco"}}}, "holds a PSNR"),
        ({"kl": {"weight": 1e9, "constraint": {"kind": "geco"}}}, "max_beta"),
        ({"kl": {"reduction": "mean_sum", "constraint": {"kind": "geco"}}}, "kl.reduction=nats"),
        ({"kl": {"constraint": {"kind": "capacity", "capacity": 1.0, "initial_capacity": 2.0}}}, "swap"),
        ({"kl": {"constraint": {"kind": "geco", "min_beta": 2.0, "max_beta": 1.0}}}, "has to be below"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        LossConfig.model_validate(settings)


@pytest.mark.parametrize("constraint", [Unconstrained(), FreeBits(nats_per_unit=0.3), Capacity(capacity=2.0), Geco()])
def test_a_batch_and_its_mean_have_the_same_constrained_kl(constraint: RateConstraint) -> None:
    kl = DiagonalGaussian(*posterior()).kl_per_unit()
    torch.testing.assert_close(
        constrained_kl(kl.mean(0, keepdim=True), constraint, 0.3), constrained_kl(kl, constraint, 0.3)
    )


# A KL weight of another trainer, against the optimum of that loss by brute force.
SPECTRUM = np.array([30.0, 12.0, 5.0, 2.0, 0.8, 0.2])
REST, DIMENSIONS = 3.0, 200
LATENTS = len(SPECTRUM)

# loss of (sum of squared errors, sum of KL), as the other trainers write it
LOSSES: dict[KLReduction, Callable[..., float]] = {
    "sum_sum": lambda squares, kl, weight: squares + weight * kl,
    "half_sum_sum": lambda squares, kl, weight: 0.5 * squares + weight * kl,
    "mean_sum": lambda squares, kl, weight: squares / DIMENSIONS + weight * kl,
    "mean_mean": lambda squares, kl, weight: squares / DIMENSIONS + weight * kl / LATENTS,
    "l1_sum": lambda squares, kl, weight: DIMENSIONS * L1_PER_SIGMA * np.sqrt(squares / DIMENSIONS) + weight * kl,
}


@pytest.mark.parametrize("reduction", LOSSES)
@pytest.mark.parametrize("level", [0.1, 1.5, 8.0])
def test_a_converted_weight_is_the_optimum_of_its_loss(reduction: KLReduction, level: float) -> None:
    def loss(logs: npt.NDArray[np.float64]) -> float:
        return LOSSES[reduction](REST + (SPECTRUM * np.exp(logs)).sum(), -0.5 * logs.sum(), weight)

    per_level = {"sum_sum": 2, "half_sum_sum": 1, "mean_sum": 2 / DIMENSIONS, "mean_mean": 2 * LATENTS / DIMENSIONS}
    weight = per_level.get(reduction, 3) * level
    linear = equivalent_linear_vae(reduction, weight, SPECTRUM, REST, DIMENSIONS, LATENTS)
    logs = np.log(linear.posterior_variances)
    best = loss(logs)
    rng = np.random.default_rng(0)
    for _ in range(300):
        assert loss(np.minimum(logs + rng.normal(0, 0.1, LATENTS), 0.0)) >= best - 1e-9


@pytest.mark.parametrize("reduction", LOSSES)
def test_the_calibrated_beta_leads_to_the_same_optimum(reduction: KLReduction) -> None:
    weight = 0.01 if reduction.startswith("mean") else 2.0
    theirs = equivalent_linear_vae(reduction, weight, SPECTRUM, REST, DIMENSIONS, LATENTS)
    ours = optimum(SPECTRUM, REST, DIMENSIONS, theirs.beta)
    assert ours.active_units == theirs.active_units > 0
    assert ours.rate == pytest.approx(theirs.rate, rel=1e-6)
    assert ours.psnr == pytest.approx(theirs.psnr, rel=1e-6)


def test_the_mean_of_squares_at_beta_one_collapses() -> None:
    """What the objective of many scripts does (docs/objective.md, "Why not")."""
    assert equivalent_linear_vae("mean_sum", 1.0, SPECTRUM, REST, DIMENSIONS, LATENTS).active_units == 0


def test_a_mean_over_latents_counts_those_without_a_component() -> None:
    latents, weight = 3 * LATENTS, 0.5
    mean = equivalent_linear_vae("mean_mean", weight, SPECTRUM, REST, DIMENSIONS, latents)
    total = equivalent_linear_vae("mean_sum", weight / latents, SPECTRUM, REST, DIMENSIONS, latents)
    assert mean.beta == pytest.approx(total.beta) and mean.rate == pytest.approx(total.rate)
