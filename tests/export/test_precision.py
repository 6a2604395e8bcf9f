"""The half-precision audit: it finds the layer, the headroom, and what is lost, on models made to have each fault."""

import copy
import json
import math

import pytest
import torch

from unified_vae.config.model import ConvConfig, ResidualConfig
from unified_vae.export import precision
from unified_vae.export.precision import MIN_HEADROOM, HalfResult, audit, half_copy
from unified_vae.models.build import build_model


@pytest.fixture(scope="module", params=[ConvConfig, ResidualConfig])
def model(request):
    made = build_model(request.param(image_size=16, latents=4, base_channels=4, channels=3), seed=0).eval()
    with torch.no_grad():
        for number, parameter in enumerate(made.parameters()):
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    return made


@pytest.fixture(scope="module")
def images():
    return torch.randint(256, (20, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def scaled(model, factor):
    """The same model with the decoder's first map `factor` as large."""
    made = copy.deepcopy(model)
    with torch.no_grad():
        made.decoder.head.weight *= factor
        made.decoder.head.bias *= factor
    return made


def test_a_tame_model_is_safe_and_loses_next_to_nothing(model, images):
    result = audit(model, images)
    assert result.fp16.safe and result.bf16.safe and result.images == 20
    assert abs(result.fp16.psnr_loss) < 0.01 and abs(result.bf16.psnr_loss) < 0.1
    assert result.lines()[0].startswith(f"fp16: safe, headroom {result.fp16.headroom:,.0f}x at {result.fp16.layer}")
    assert json.loads(json.dumps(result.to_json()))["fp16"]["safe"] is True


def test_the_headroom_is_that_of_the_largest_activation(model, images):
    """Against activations that are looked at one by one."""
    largest = 0.0
    hooks = []
    for module in model.modules():

        def see(_module, given, result):
            nonlocal largest
            tensors = [value for value in (*given, result) if isinstance(value, torch.Tensor)]
            largest = max([largest, *(float(value.abs().max()) for value in tensors)])

        hooks.append(module.register_forward_hook(see))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for start in (0, 16):
            posterior = model.encode(images[start : start + 16].float() / 255)
            model.decode(posterior.sample(torch.randn(posterior.mean.shape, generator=generator)))
            model.sample(len(posterior.mean), generator)
    for hook in hooks:
        hook.remove()
    actual = audit(model, images)
    assert actual.fp16.headroom == pytest.approx(65504 / largest)


def test_an_overflow_names_its_layer_and_advises_bf16(images):
    model = build_model(ConvConfig(image_size=16, latents=4, base_channels=4, channels=3), seed=0).eval()
    result = audit(scaled(model, 1e6), images)  # a norm follows, so that float32 sees the same images as before
    assert not result.fp16.safe and result.fp16.overflows and result.fp16.psnr_loss == math.inf
    assert result.fp16.layer == "decoder.head" and result.fp16.headroom < 1
    assert result.fp16.line("bf16") == "fp16: overflows at decoder.head: use bf16"
    assert result.bf16.safe and "use bf16" in result.lines()[0]


def test_little_room_is_not_safe_although_nothing_overflowed(images):
    model = build_model(ConvConfig(image_size=16, latents=4, base_channels=4, channels=3), seed=0).eval()
    tall = audit(scaled(model, 1e3), images).fp16
    assert tall.layer == "decoder.head"
    result = audit(scaled(model, 1e3 * tall.headroom / 2), images)
    assert not result.fp16.overflows and 1 < result.fp16.headroom < MIN_HEADROOM and not result.fp16.safe
    assert "only headroom" in result.fp16.line("bf16")


def test_weights_that_are_nan_or_infinite_are_found_in_both(model, images):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.decoder.head.weight[0] = math.nan
    result = audit(broken, images)
    assert result.fp16.overflows and result.bf16.overflows and "use fp32" in result.lines()[0]
    json.dumps(result.to_json(), allow_nan=False)


def test_the_audit_leaves_the_model_as_it_was(model, images):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, again = audit(model, images), audit(model, images)
    assert first == again
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_copy_computes_in_half_and_speaks_float32(model, images):
    twin = half_copy(model, torch.float16)
    assert {value.dtype for value in twin.state_dict().values()} == {torch.float16}
    with torch.no_grad():
        posterior = twin.encode(images.float() / 255)
        assert posterior.mean.dtype == posterior.logvar.dtype == twin.decode(posterior.mean).dtype == torch.float32
        assert (posterior.mean - model.encode(images.float() / 255).mean).abs().max() < 0.02


def test_what_was_not_tried_is_not_safe(model, images, monkeypatch):
    """Headroom alone does not say that the numbers stay finite, nor what is lost."""
    result = HalfResult("fp16", 41, "x", None)
    assert not result.safe and result.line("fp32") == "fp16: not tried on this device: use fp32"

    def lacking(*_):
        raise RuntimeError("\"slow_conv2d_cpu\" not implemented for 'Half'")

    monkeypatch.setattr(precision, "half_copy", lacking)
    actual = audit(model, images[:2])
    assert not actual.fp16.safe and not actual.bf16.safe and all(line.endswith("use fp32") for line in actual.lines())


@pytest.mark.parametrize("words", ["DefaultCPUAllocator: can't allocate memory", "MPS backend out of memory"])
def test_too_little_memory_is_no_verdict(model, images, monkeypatch, words):
    def full(*_):
        raise RuntimeError(words)

    monkeypatch.setattr(precision, "half_copy", full)
    with pytest.raises(RuntimeError, match=words):
        audit(model, images[:2])
