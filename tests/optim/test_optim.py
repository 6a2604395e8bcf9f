"""Optimizers are built as configured, and learning rates follow their formulas."""

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from unified_vae.config.optim import ConstantLR, CosineLR, OptimizerConfig, PlateauLR
from unified_vae.optim.build import build_optimizers
from unified_vae.optim.lr import PlateauState, lr_factor

OPTIMIZER = TypeAdapter(OptimizerConfig)


def trained(settings, steps=3):
    """Weights after a few steps, which every setting of an optimizer must change."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(4, 4)
    optimizer = build_optimizers(OPTIMIZER.validate_python(settings), model, fused=True)["main"]
    for step in range(steps):
        optimizer.zero_grad()
        (model(torch.full((2, 4), 1.0 + step)).square().mean() * (1.0 + step)).backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("adamw", {"lr": 0.1}),
        ("adamw", {"beta1": 0.5}),
        ("adamw", {"beta2": 0.5}),
        ("adamw", {"eps": 0.1}),
        ("adamw", {"weight_decay": 0.5}),
        ("adam", {"lr": 0.1}),
        ("adam", {"beta1": 0.5}),
        ("adam", {"beta2": 0.5}),
        ("adam", {"eps": 0.1}),
        ("sgd", {"lr": 0.1}),
        ("sgd", {"momentum": 0.1}),
        ("sgd", {"nesterov": False}),
        ("sgd", {"weight_decay": 0.5}),
    ],
)
def test_every_setting_reaches_the_optimizer(kind, change):
    assert not torch.equal(trained({"kind": kind}), trained({"kind": kind, **change}))


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd"])
def test_an_optimizer_without_dynamo_steps_as_torch_s(kind):
    models = []
    for torch_s_own in (False, True):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Linear(4, 4)
        optimizer = build_optimizers(OPTIMIZER.validate_python({"kind": kind}), model, fused=True)["main"]
        if torch_s_own:
            optimizer.__class__ = type(optimizer).__mro__[1]
            assert type(optimizer).__module__.startswith("torch.optim")
        for number in range(3):
            optimizer.zero_grad()
            model(torch.full((2, 4), 1.0 + number)).square().mean().backward()
            optimizer.step()
        models.append(model)
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


def test_kinds_differ():
    assert not torch.equal(trained({"kind": "adam", "lr": 0.01}), trained({"kind": "sgd", "lr": 0.01}))


def test_biases_and_gains_are_not_decayed():
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.GroupNorm(1, 2))
    settings = OPTIMIZER.validate_python({"kind": "adamw", "weight_decay": 0.1})
    decayed, exempt = build_optimizers(settings, model, False)["main"].param_groups
    assert decayed["weight_decay"] == 0.1 and all(p.ndim >= 2 for p in decayed["params"])
    assert exempt["weight_decay"] == 0.0 and all(p.ndim < 2 for p in exempt["params"])
    assert len(decayed["params"]) + len(exempt["params"]) == len(list(model.parameters()))


def test_cosine_rises_then_falls_to_its_final_part():
    schedule = CosineLR(warmup=0.1, min_lr_ratio=0.2)
    assert lr_factor(schedule, 0.05) == pytest.approx(0.5)
    assert lr_factor(schedule, 0.1) == pytest.approx(1.0)
    assert lr_factor(schedule, 0.55) == pytest.approx(0.6)
    assert lr_factor(schedule, 1.0) == pytest.approx(0.2)
    assert lr_factor(CosineLR(warmup=0.0), 0.0) == 1.0


def test_constant_stays():
    assert [lr_factor(ConstantLR(warmup=0.5), t) for t in (0.25, 0.5, 1.0)] == [0.5, 1.0, 1.0]


def test_plateau_waits_for_patience_and_stops_at_its_floor():
    schedule = PlateauLR(factor=0.5, patience=2, min_lr_ratio=0.2)
    state = PlateauState()
    seen = []
    for psnr in (20.0, 21.0, 21.0, 20.5, 20.5, 20.5, 22.0, 21.0, 21.0):
        state.validated(schedule, psnr)
        seen.append(lr_factor(schedule, 0.5, state.reductions))
    assert seen == [1.0, 1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.25, 0.2]
