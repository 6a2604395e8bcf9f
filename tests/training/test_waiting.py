"""A step asks the device for nothing: the host prepares the next one while the device still computes."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.train_steps import CPU, small_step, take
from unified_vae.config.loss import Capacity, FreeBits, Geco, KLConfig, L1Config, LossConfig, MSEConfig, Unconstrained
from unified_vae.config.model import ConvConfig, ResidualConfig
from unified_vae.config.optim import AdamConfig, AdamWConfig, SGDConfig
from unified_vae.training.train_step import forward_and_measure, to_unit_range

PIXELS = torch.randint(0, 256, (8, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PIXELS = PIXELS.permute(0, 3, 1, 2)  # as they come from the pack
READS = ("tolist", "numpy", "cpu")
WAITS = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select")


class Watching(TorchDispatchMode):
    """Notes every operation, those of the backward pass too."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def vae_step(model=None, constraint=None, **settings):
    config = model or ConvConfig(image_size=16, latents=5, base_channels=8, channels=3)
    kl = KLConfig(weight=2.0, constraint=constraint or Unconstrained())
    loss = LossConfig(mse=MSEConfig(weight=1.0), l1=L1Config(weight=0.2), kl=kl)
    return small_step(config, loss, PIXELS, **settings)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"model": ResidualConfig(image_size=16, latents=5, base_channels=8, channels=3)},
        {"optimizer": AdamConfig()},
        {"optimizer": SGDConfig()},
        {"constraint": FreeBits()},
        {"constraint": Capacity()},
        {"constraint": Geco()},
    ],
    ids=lambda change: str([*change.values()])[:30],
)
def test_no_number_is_read_in_a_step(change, monkeypatch):
    train_step = vae_step(**change)
    take(train_step, PIXELS, 0)
    with monkeypatch.context() as patch, Watching() as seen:
        for name in READS:
            patch.setattr(torch.Tensor, name, lambda *_, **__: pytest.fail("a number was read"))
        metrics = take(train_step, PIXELS, 1)
    assert "convolution_backward" in seen.names
    assert [name for name in seen.names if name in WAITS] == []
    with Watching() as seen:
        metrics[0].item()
    assert "_local_scalar_dense" in seen.names


def test_the_rate_of_a_batch_is_computed_once():
    train_step = vae_step()
    output = train_step.model(to_unit_range(PIXELS), torch.zeros(8, 5))
    calls = []
    kl_per_unit = type(output.posterior).kl_per_unit

    class Counting(type(output.posterior)):
        def kl_per_unit(self):
            calls.append(1)
            return kl_per_unit(self)

    counting = Counting(output.posterior.mean, output.posterior.logvar)
    train_step.objective(type(output)(output.reconstruction, counting, output.latents), to_unit_range(PIXELS), 0.1)
    assert calls == [1]


@pytest.mark.parametrize("optimizer", [AdamWConfig(), SGDConfig(momentum=0.0)])
def test_clipping_inside_the_optimizer_is_clipping_before_it(optimizer):
    settings = {"optimizer": optimizer, "max_grad_norm": 1e-2}
    inside, before = vae_step(**settings), vae_step(**settings, fused=False)
    for step in range(3):
        take(inside, PIXELS, step)
        take(before, PIXELS, step)
    torch.testing.assert_close(inside.model.state_dict(), before.model.state_dict(), rtol=1e-3, atol=5e-5)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_pixels_reach_the_network_in_its_own_layout(layout):
    runtime = CPU.with_memory_format(layout)
    for images in (PIXELS, PIXELS.float() / 255, PIXELS.contiguous()):
        result = to_unit_range(images, runtime.memory_format)
        assert result.dtype == torch.float32 and result.is_contiguous(memory_format=runtime.memory_format)
        assert torch.equal(result * 255, images.float() * (1 if images.dtype == torch.uint8 else 255))


def test_the_layout_changes_nothing_but_rounding():
    plain, last = vae_step(), vae_step(runtime=CPU.with_memory_format("channels_last"))
    for step in range(3):
        metrics = take(plain, PIXELS, step), take(last, PIXELS, step)
        torch.testing.assert_close(*metrics, rtol=1e-4, atol=1e-5)


def test_ema_follows_fixed_weights_only_where_written():
    train_step = vae_step()
    take(train_step, PIXELS, 0)
    fixed, averaged = train_step.model.pca_skip.to_pixels.bias, train_step.ema.model.pca_skip.to_pixels.bias
    with torch.no_grad():
        fixed += 1.0
    take(train_step, PIXELS, 1)
    assert torch.equal(averaged, fixed)
    with torch.no_grad():
        averaged += 1.0
    take(train_step, PIXELS, 2)
    assert not torch.equal(averaged, fixed)


@pytest.mark.slow
@pytest.mark.parametrize("family", [ConvConfig, ResidualConfig])
def test_network_and_distortions_are_one_graph_for_the_compiler(family):
    train_step = vae_step(family(image_size=16, latents=5, base_channels=8, channels=3))
    images, noise = to_unit_range(PIXELS), torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
    one_graph = torch.compile(forward_and_measure, fullgraph=True, backend="aot_eager", dynamic=False)
    output, terms = one_graph(train_step.model, train_step.objective, images, noise)
    expected, expected_terms = forward_and_measure(train_step.model, train_step.objective, images, noise)
    torch.testing.assert_close(output.reconstruction, expected.reconstruction)
    torch.testing.assert_close(terms, expected_terms)
