"""The parts of a run are built for the arithmetic and the images that it has."""

from types import SimpleNamespace

import pytest
import torch
from lives import request, write_images

from unified_vae.experiment.fitting import assemble
from unified_vae.training.runtime import Runtime


@pytest.mark.parametrize(
    ("network", "features"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)],
)
def test_pretrained_features_are_computed_in_bf16_where_the_network_is(network, features, tmp_path, monkeypatch):
    """Not in fp16, whose range their activations may leave."""
    asked = []
    build = assemble.build_objective
    monkeypatch.setattr(assemble, "build_objective", lambda *given: asked.append(given[-1]) or build(*given))
    config = request(tmp_path / "run", write_images(tmp_path / "images.npy"), {"model": {"channels": 3}}).run.config
    data = SimpleNamespace(train=range(44), channels=3)
    parts = assemble.build_parts(config, data, Runtime(torch.device("cpu"), network))
    assert asked == [features] and parts.plan.steps_per_epoch > 0


@pytest.mark.parametrize(
    ("capabilities", "dtype", "offered"),
    [
        ({"avx512_bf16": True}, torch.float32, True),
        ({"amx_bf16": True}, torch.float32, True),
        ({"avx512_bf16": True}, torch.bfloat16, False),
        ({"avx2": True}, torch.float32, False),
    ],
)
def test_bf16_is_offered_where_the_processor_has_it_and_it_is_not_used(capabilities, dtype, offered, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert Runtime(torch.device("cpu"), dtype).has_bf16_to_offer is offered
