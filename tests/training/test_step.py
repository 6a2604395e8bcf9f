"""One optimizer step: what it depends on, and what it refuses."""

import gc
import weakref

import pytest
import torch

from unified_vae.config.loss import HaarPSIConfig, KLConfig, L1Config, LossConfig, MSEConfig, TermConfig
from unified_vae.config.model import ConvConfig
from unified_vae.config.optim import AdamWConfig
from unified_vae.core.errors import ConfigError
from unified_vae.losses.build import build_objective
from unified_vae.models.build import build_model
from unified_vae.optim.build import build_optimizer
from unified_vae.training.ema import EMA
from unified_vae.training.optimizer_state import optimizer_tensors
from unified_vae.training.runtime import Runtime
from unified_vae.training.self_test import dead_terms, refuse_dead_terms
from unified_vae.training.step import Stepper

MODEL = ConvConfig(image_size=16, latents=5, base_channels=8, channels=3)
LOSS = LossConfig(mse=MSEConfig(weight=1.0), l1=L1Config(weight=0.2), kl=KLConfig(weight=2.0))
IMAGES = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def stepper(accumulate=1, clip_norm=1.0, fused=True):
    runtime = Runtime(torch.device("cpu"), torch.float32)
    model = build_model(MODEL, seed=0)
    objective = build_objective(LOSS, 3, 16)
    with torch.no_grad():
        objective.observe(objective.measure(model(IMAGES, torch.zeros(8, 5)), IMAGES))
    optimizer = build_optimizer(AdamWConfig(), model, fused=fused)
    return Stepper(
        runtime, model, EMA(model, 0.9), objective, optimizer, seed=3, accumulate=accumulate, clip_norm=clip_norm
    )


def weights(some):
    return torch.cat([p.detach().flatten().clone() for p in some.model.parameters()])


def test_the_same_step_twice_gives_the_same_bits():
    first, second = stepper(), stepper()
    for step in range(3):
        assert torch.equal(first.take(IMAGES, step, 0.1, 1e-3), second.take(IMAGES, step, 0.1, 1e-3))
    assert torch.equal(weights(first), weights(second))


@pytest.mark.parametrize("pieces", [2, 3, 8])
def test_micro_batches_change_nothing_but_rounding(pieces):
    whole, parts = stepper(), stepper(accumulate=pieces)
    for step in range(3):
        torch.testing.assert_close(
            whole.take(IMAGES, step, 0.1, 1e-3), parts.take(IMAGES, step, 0.1, 1e-3), rtol=2e-4, atol=2e-5
        )
    torch.testing.assert_close(whole.objective.state_dict(), parts.objective.state_dict(), rtol=1e-4, atol=1e-6)


def test_what_took_steps_is_freed_when_nobody_names_it_any_more():
    """Without a collection: on a GPU nothing asks for one before memory is short."""
    some = stepper()
    some.take(IMAGES, 0, 0.1, 1e-3)
    held = [weakref.ref(each) for each in (some, some.model, some.ema.model, some.optimizer, some.objective)]
    gc.collect()
    gc.disable()
    try:
        del some
        assert [each() for each in held] == [None] * len(held)
    finally:
        gc.enable()


def test_a_step_depends_on_its_number_and_its_rate():
    assert not torch.equal(stepper().take(IMAGES, 0, 0.1, 1e-3), stepper().take(IMAGES, 1, 0.1, 1e-3))
    slow, fast = stepper(), stepper()
    before = weights(slow)
    slow.take(IMAGES, 0, 0.1, 1e-4)
    fast.take(IMAGES, 0, 0.1, 1e-3)
    assert (weights(slow) - before).abs().max() < (weights(fast) - before).abs().max()


def test_the_norm_is_clipped():
    """Plain gradients, so that a step is the rate times the clipped gradient."""
    some = stepper(clip_norm=1e-3)
    some.optimizer = torch.optim.SGD(some.parameters, lr=1.0, fused=True)
    before = weights(some)
    norm = some.take(IMAGES, 0, 0.1, 1.0)[-1]
    assert norm > 1e-3
    assert (weights(some) - before).norm() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_move_neither_weights_nor_moments(bad, fused):
    some = stepper(fused=fused)
    some.take(IMAGES, 0, 0.1, 1e-3)
    before = weights(some)
    moments = {name: value.clone() for name, value in optimizer_tensors(some.optimizer, some.model).items()}
    spoilt = IMAGES.clone()
    spoilt[3, 0, 2, 2] = bad
    measured = some.take(spoilt, 1, 0.1, 1e-3)
    assert not torch.isfinite(measured[-1])
    assert torch.equal(weights(some), before)
    after = optimizer_tensors(some.optimizer, some.model)
    assert all(torch.equal(value, after[name]) for name, value in moments.items())


def test_every_enabled_term_passes_the_self_test_and_a_detached_one_does_not(monkeypatch):
    some = stepper()
    noise = torch.randn(8, 5)
    assert dead_terms(some.model, some.objective, IMAGES, noise) == []
    measure = some.objective.measure

    def detached(output, images):
        values = measure(output, images)
        return {**values, "l1": values["l1"].detach()}

    monkeypatch.setattr(some.objective, "measure", detached)
    assert dead_terms(some.model, some.objective, IMAGES, noise) == ["loss.l1"]
    with pytest.raises(ConfigError, match=r"loss\.l1"):
        refuse_dead_terms(some.model, some.objective, IMAGES, noise)


def test_every_term_that_needs_no_weights_passes_the_self_test():
    fields = {name: getattr(LossConfig(), name) for name in LossConfig.model_fields}
    terms = {
        name: field.model_copy(update={"weight": 1.0})
        for name, field in fields.items()
        if isinstance(field, TermConfig) and "weights_path" not in type(field).model_fields
    }
    objective = build_objective(LossConfig(**terms), 3, 16)
    assert len(objective.terms) >= 7
    assert dead_terms(stepper().model, objective, IMAGES, torch.randn(8, 5)) == []


def test_a_term_of_weight_zero_is_not_computed():
    loss = LOSS.model_copy(update={"haarpsi": HaarPSIConfig(weight=0.0)})
    assert set(build_objective(loss, 3, 16).terms) == {"mse", "l1"}
