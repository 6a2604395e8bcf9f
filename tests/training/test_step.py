"""One optimizer step: what it depends on, and what it refuses."""

import gc
import weakref

import pytest
import torch

from tests.helpers.train_steps import optimizer_tensors, small_step, take
from unified_vae.config.loss import HaarPSIConfig, KLConfig, L1Config, LossConfig, MSEConfig, TermConfig
from unified_vae.config.model import ConvConfig
from unified_vae.config.optim import SGDConfig
from unified_vae.core.errors import ConfigError
from unified_vae.losses.build import build_objective
from unified_vae.training.train_step import dead_terms, refuse_dead_terms

MODEL = ConvConfig(image_size=16, latents=5, base_channels=8, channels=3)
LOSS = LossConfig(mse=MSEConfig(weight=1.0), l1=L1Config(weight=0.2), kl=KLConfig(weight=2.0))
IMAGES = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def vae_step(**settings):
    return small_step(MODEL, LOSS, IMAGES, **settings)


def weights(train_step):
    return torch.cat([p.detach().flatten().clone() for p in train_step.model.parameters()])


def test_the_same_step_twice_gives_the_same_bits():
    first, second = vae_step(), vae_step()
    for step in range(3):
        assert torch.equal(take(first, IMAGES, step), take(second, IMAGES, step))
    assert torch.equal(weights(first), weights(second))


@pytest.mark.parametrize("count", [2, 3, 8])
def test_micro_batches_change_nothing_but_rounding(count):
    whole, split = vae_step(), vae_step(num_micro_batches=count)
    for step in range(3):
        metrics = take(whole, IMAGES, step), take(split, IMAGES, step)
        torch.testing.assert_close(*metrics, rtol=2e-4, atol=2e-5)
    torch.testing.assert_close(whole.objective.state_dict(), split.objective.state_dict(), rtol=1e-4, atol=1e-6)


def test_a_step_is_freed_with_its_last_reference():
    """Without a collection: on a GPU nothing asks for one before memory is short."""
    train_step = vae_step()
    take(train_step, IMAGES, 0)
    parts = [getattr(train_step, name) for name in ("model", "ema", "updater", "objective")]
    parts += [train_step, train_step.optimizers["main"]]
    held = [weakref.ref(part) for part in parts]
    gc.collect()
    gc.disable()
    try:
        del train_step, parts
        assert [part() for part in held] == [None] * len(held)
    finally:
        gc.enable()


def test_a_step_depends_on_its_number_and_its_rate():
    assert not torch.equal(take(vae_step(), IMAGES, 0), take(vae_step(), IMAGES, 1))
    slow, fast = vae_step(), vae_step()
    before = weights(slow)
    take(slow, IMAGES, 0, 1e-4)
    take(fast, IMAGES, 0)
    assert (weights(slow) - before).abs().max() < (weights(fast) - before).abs().max()


def test_the_norm_is_clipped():
    """Plain gradients, so that a step is the rate times the clipped gradient."""
    train_step = vae_step(optimizer=SGDConfig(lr=1.0, momentum=0.0), max_grad_norm=1e-3)
    before = weights(train_step)
    norm = take(train_step, IMAGES, 0, lr=1.0)[-1]
    assert norm > 1e-3
    assert (weights(train_step) - before).norm() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_or_inf_move_neither_weights_nor_moments(bad, fused):
    train_step = vae_step(fused=fused)
    take(train_step, IMAGES, 0)
    before = weights(train_step)
    moments = {name: value.clone() for name, value in optimizer_tensors(train_step).items()}
    spoilt = IMAGES.clone()
    spoilt[3, 0, 2, 2] = bad
    metrics = take(train_step, spoilt, 1)
    assert not torch.isfinite(metrics[-1])
    assert torch.equal(weights(train_step), before)
    after = optimizer_tensors(train_step)
    assert all(torch.equal(value, after[name]) for name, value in moments.items())


def test_the_self_test_finds_detached_terms(monkeypatch):
    train_step = vae_step()
    noise = torch.randn(8, 5)
    assert dead_terms(train_step.model, train_step.objective, IMAGES, noise) == []
    measure = train_step.objective.measure

    def detached(output, images):
        values = measure(output, images)
        return {**values, "l1": values["l1"].detach()}

    monkeypatch.setattr(train_step.objective, "measure", detached)
    assert dead_terms(train_step.model, train_step.objective, IMAGES, noise) == ["loss.l1"]
    with pytest.raises(ConfigError, match=r"loss\.l1"):
        refuse_dead_terms(train_step.model, train_step.objective, IMAGES, noise)


def test_every_term_that_needs_no_weights_passes_the_self_test():
    fields = {name: getattr(LossConfig(), name) for name in LossConfig.model_fields}
    terms = {
        name: field.model_copy(update={"weight": 1.0})
        for name, field in fields.items()
        if isinstance(field, TermConfig) and "weights_path" not in type(field).model_fields
    }
    objective = build_objective(LossConfig(**terms), 3, 16)
    assert len(objective.terms) >= 7
    assert dead_terms(vae_step().model, objective, IMAGES, torch.randn(8, 5)) == []


def test_a_term_of_weight_zero_is_not_computed():
    loss = LOSS.model_copy(update={"haarpsi": HaarPSIConfig(weight=0.0)})
    assert set(build_objective(loss, 3, 16).terms) == {"mse", "l1"}
