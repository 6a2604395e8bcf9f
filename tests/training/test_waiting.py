"""A step asks the device for nothing: the host prepares the next one while the device still computes."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from unified_vae.config.loss import Capacity, FreeBits, Geco, KLConfig, L1Config, LossConfig, MSEConfig, Unconstrained
from unified_vae.config.model import ConvConfig, ResidualConfig
from unified_vae.config.optim import AdamConfig, AdamWConfig, SGDConfig
from unified_vae.losses.build import build_objective
from unified_vae.models.build import build_model
from unified_vae.optim.build import build_optimizer
from unified_vae.training.ema import EMA
from unified_vae.training.runtime import Runtime
from unified_vae.training.step import Stepper, in_unit_range, network

CPU = Runtime(torch.device("cpu"), torch.float32)
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


def stepper(model=None, optimizer=None, constraint=None, runtime=CPU, compiled=False):
    config = model or ConvConfig(image_size=16, latents=5, base_channels=8, channels=3)
    kl = KLConfig(weight=2.0, constraint=constraint or Unconstrained())
    objective = build_objective(LossConfig(mse=MSEConfig(weight=1.0), l1=L1Config(weight=0.2), kl=kl), 3, 16)
    network = build_model(config, seed=0).to(memory_format=runtime.layout)
    images = in_unit_range(PIXELS, runtime.layout)
    with torch.no_grad():
        objective.observe(objective.measure(network(images, torch.zeros(8, 5)), images))
    built = build_optimizer(optimizer or AdamWConfig(), network, fused=True)
    ema = EMA(network, 0.9)
    return Stepper(
        runtime, network, ema, objective, built, seed=3, accumulate=1, clip_norm=1.0, compiled=compiled
    )  # fmt: skip


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
    some = stepper(**change)
    some.take(PIXELS, 0, 0.1, 1e-3)
    with monkeypatch.context() as patch, Watching() as seen:
        for name in READS:
            patch.setattr(torch.Tensor, name, lambda *_, **__: pytest.fail("a number was read"))
        measured = some.take(PIXELS, 1, 0.1, 1e-3)
    assert "convolution_backward" in seen.names
    assert [name for name in seen.names if name in WAITS] == []
    with Watching() as seen:
        measured[0].item()
    assert "_local_scalar_dense" in seen.names


def test_the_rate_of_a_batch_is_computed_once():
    some = stepper()
    output = some.model(in_unit_range(PIXELS), torch.zeros(8, 5))
    calls = []
    kl_per_unit = type(output.posterior).kl_per_unit

    class Counting(type(output.posterior)):
        def kl_per_unit(self):
            calls.append(1)
            return kl_per_unit(self)

    counting = Counting(output.posterior.mean, output.posterior.logvar)
    some.objective(type(output)(output.reconstruction, counting, output.latents), in_unit_range(PIXELS), 0.1)
    assert calls == [1]


@pytest.mark.parametrize("optimizer", [AdamWConfig(), SGDConfig(momentum=0.0)])
def test_clipping_inside_the_optimizer_is_clipping_before_it(optimizer):
    inside, before = stepper(optimizer=optimizer), stepper(optimizer=optimizer)
    inside.clip_norm = before.clip_norm = 1e-2
    before.guards_itself = False
    for step in range(3):
        inside.take(PIXELS, step, 0.1, 1e-3)
        before.take(PIXELS, step, 0.1, 1e-3)
    torch.testing.assert_close(inside.model.state_dict(), before.model.state_dict(), rtol=1e-3, atol=5e-5)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_pixels_reach_the_network_in_its_own_layout(layout):
    runtime = CPU.laid_out(layout)
    for images in (PIXELS, PIXELS.float() / 255, PIXELS.contiguous()):
        found = in_unit_range(images, runtime.layout)
        assert found.dtype == torch.float32 and found.is_contiguous(memory_format=runtime.layout)
        assert torch.equal(found * 255, images.float() * (1 if images.dtype == torch.uint8 else 255))


def test_the_layout_changes_nothing_but_rounding():
    plain, last = stepper(), stepper(runtime=CPU.laid_out("channels_last"))
    for step in range(3):
        torch.testing.assert_close(
            plain.take(PIXELS, step, 0.1, 1e-3), last.take(PIXELS, step, 0.1, 1e-3), rtol=1e-4, atol=1e-5
        )


def test_fixed_weights_are_followed_only_where_they_were_written():
    some = stepper()
    some.take(PIXELS, 0, 0.1, 1e-3)
    fixed, averaged = some.model.linear.to_picture.bias, some.ema.model.linear.to_picture.bias
    with torch.no_grad():
        fixed += 1.0
    some.take(PIXELS, 1, 0.1, 1e-3)
    assert torch.equal(averaged, fixed)
    with torch.no_grad():
        averaged += 1.0
    some.take(PIXELS, 2, 0.1, 1e-3)
    assert not torch.equal(averaged, fixed)


@pytest.mark.slow
@pytest.mark.parametrize("family", [ConvConfig, ResidualConfig])
def test_network_and_distortions_are_one_graph_for_the_compiler(family):
    some = stepper(family(image_size=16, latents=5, base_channels=8, channels=3))
    images, noise = in_unit_range(PIXELS), torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
    one_graph = torch.compile(network, fullgraph=True, backend="aot_eager", dynamic=False)
    output, terms = one_graph(some.model, some.objective, images, noise)
    expected, expected_terms = network(some.model, some.objective, images, noise)
    torch.testing.assert_close(output.reconstruction, expected.reconstruction)
    torch.testing.assert_close(terms, expected_terms)
