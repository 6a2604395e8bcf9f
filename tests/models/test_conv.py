"""The plain convolutional family: shapes, every setting's effect, seeds."""

import pytest
import torch

from unified_vae.config.model import ConvConfig
from unified_vae.models.build import build_model

SMALL = ConvConfig(image_size=16, latents=5, base_channels=8, channels=3)


def described(model):
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


@pytest.mark.parametrize("size", [8, 16, 28, 31, 64, 100])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_goes_in_and_comes_out(size, channels):
    model = build_model(ConvConfig(image_size=size, latents=3, base_channels=4, channels=channels))
    output = model(torch.rand(2, channels, size, size), torch.randn(2, 3))
    assert output.reconstruction.shape == (2, channels, size, size)
    assert output.posterior.mean.shape == output.posterior.logvar.shape == output.latents.shape == (2, 3)


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 32},
        {"pca_init": False},
        {"latents": 6},
        {"base_channels": 16},
        {"max_multiplier": 1},
        {"channels": 1},
    ],
)
def test_every_setting_reaches_the_weights(change):
    base = {**SMALL.model_dump(), "image_size": 32} if "max_multiplier" in change else SMALL.model_dump()
    assert described(build_model(ConvConfig(**base))) != described(build_model(ConvConfig(**{**base, **change})))


def test_the_seed_decides_the_weights_and_nothing_else():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = build_model(SMALL, seed=1), build_model(SMALL, seed=1), build_model(SMALL, seed=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.encoder.head.weight, other.encoder.head.weight)


def test_every_parameter_is_moved_by_the_reconstruction():
    model = build_model(SMALL, seed=0)
    model(torch.rand(4, 3, 16, 16), torch.randn(4, 5)).reconstruction.square().sum().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in model.parameters() if p.requires_grad)


def test_an_image_does_not_see_its_neighbours():
    """No batch statistics: the result is the same alone and in a batch, in training and in evaluation."""
    model = build_model(SMALL, seed=0)
    images, noise = torch.rand(4, 3, 16, 16), torch.randn(4, 5)
    together = model.train()(images, noise).reconstruction
    alone = torch.cat([model.eval()(images[i : i + 1], noise[i : i + 1]).reconstruction for i in range(4)])
    torch.testing.assert_close(together, alone)


def test_the_posterior_is_float32_under_autocast():
    model = build_model(SMALL, seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(torch.rand(2, 3, 16, 16), torch.randn(2, 5))
    assert output.posterior.logvar.dtype == output.reconstruction.dtype == torch.float32


def test_auto_channels_are_refused():
    with pytest.raises(ValueError, match="auto"):
        build_model(ConvConfig())
