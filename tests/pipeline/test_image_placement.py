"""Where the images lie changes nothing but speed, and is said at the start."""

import json
from types import SimpleNamespace

import pytest
import torch

from tests.helpers.runs import Recorder, outcome, request, train, write_images
from unified_vae.config.data import DataConfig
from unified_vae.core.errors import EnvironmentProblem
from unified_vae.pipeline import autotune, profile, setup
from unified_vae.training.distributed import Runtime

GPU = Runtime(torch.device("cuda"), torch.float32)  # said, never used
SPLIT = SimpleNamespace(shape=(4, 8, 8, 3))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "images.npy")


def test_a_run_with_images_in_memory_ends_in_the_same_bits(source, tmp_path):
    ends, locations = [], []
    for cached in ("auto", True):
        run = tmp_path / str(cached)
        train(
            request(run, source, {"training": {"epochs": 2}, "data": {"cache_on_device": cached}}),
            [recorder := Recorder()],
        )
        ends.append(outcome(run))
        locations.append(dict(recorder.started[0].facts)["images"])
        shares = [row["data_share"] for row in map(json.loads, (run / "timing.jsonl").open()) if "data_share" in row]
        assert shares and all(0 <= share < 1 for share in shares)
    assert ends[0] == ends[1]
    assert "mapped from the disk" in locations[0] and "in the memory of cpu" in locations[1]


def test_images_take_their_place_before_the_batch_is_measured(source, tmp_path, monkeypatch):
    order = []

    def record_calls(module, name):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args: (order.append((module, name)), function(*args))[1])

    record_calls(setup, "cache_images")
    record_calls(profile, "cache_images")
    record_calls(autotune, "with_batch_size")
    run_request = request(tmp_path / "run", source, {"training": {"max_steps": 1}, "data": {"cache_on_device": True}})
    train(run_request, [Recorder()])
    monkeypatch.setattr(profile, "MAX_STEPS", 1)
    profile.profile(run_request.run, tmp_path / "profile", Recorder())
    measured = (autotune, "with_batch_size")
    assert order == [(setup, "cache_images"), measured, (profile, "cache_images"), measured]


def test_only_a_lack_of_memory_is_one(monkeypatch):
    def failing(problem):
        def load(*_):
            raise problem

        monkeypatch.setattr(setup, "cache_on_device", load)

    monkeypatch.setattr(setup, "fits_on_device", lambda *_: True)
    monkeypatch.setattr(Runtime, "free_device_memory", lambda _: 0)
    monkeypatch.setattr(Runtime, "empty_cache", lambda _: None)
    failing(RuntimeError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        setup.cache_images(SPLIT, DataConfig(source="unused"), GPU)
    failing(torch.OutOfMemoryError("CUDA out of memory"))
    assert setup.cache_images(SPLIT, DataConfig(source="unused"), GPU)[0] is None
    with pytest.raises(EnvironmentProblem, match="has no room"):
        setup.cache_images(SPLIT, DataConfig(source="unused", cache_on_device=True), GPU)
