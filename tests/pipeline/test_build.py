"""The parts of a run are built for the arithmetic and the images that it has."""

from types import SimpleNamespace

import pytest
import torch

from tests.helpers.runs import request, write_images
from unified_vae.pipeline import build
from unified_vae.training.distributed import Runtime


@pytest.mark.parametrize(
    ("network", "features"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)],
)
def test_pretrained_features_are_computed_in_the_runs_precision(network, features, tmp_path, monkeypatch):
    """Not in fp16, whose range their activations may leave."""
    dtypes = []
    original = build.build_objective
    monkeypatch.setattr(build, "build_objective", lambda *args: dtypes.append(args[-1]) or original(*args))
    config = request(tmp_path / "run", write_images(tmp_path / "images.npy"), {"model": {"channels": 3}}).run.config
    data = SimpleNamespace(train=range(44), channels=3)
    train_step = build.build_vae_step(config, data, Runtime(torch.device("cpu"), network))
    schedule = build.make_schedule(config, data, train_step.objective)
    assert dtypes == [features] and schedule.steps_per_epoch == 6


@pytest.mark.parametrize(
    ("capabilities", "dtype", "offered"),
    [
        ({"avx512_bf16": True}, torch.float32, True),
        ({"amx_bf16": True}, torch.float32, True),
        ({"avx512_bf16": True}, torch.bfloat16, False),
        ({"avx2": True}, torch.float32, False),
    ],
)
def test_bf16_is_offered_where_the_processor_supports_it(capabilities, dtype, offered, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert Runtime(torch.device("cpu"), dtype).supports_bf16 is offered
