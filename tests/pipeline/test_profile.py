"""--profile: every part of a step is named, the times add up, and nothing is left that looks like a run."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from tests.helpers.runs import Recorder, request, write_images
from unified_vae.analysis.model_cost import model_cost
from unified_vae.config.model import ConvConfig, ResidualConfig
from unified_vae.core.errors import ConfigError, EnvironmentProblem
from unified_vae.core.run_dir import RunFolder
from unified_vae.models.build import build_model
from unified_vae.pipeline import profile
from unified_vae.pipeline.profile import profile_folder


@pytest.fixture
def little(monkeypatch):
    monkeypatch.setattr(profile, "MAX_STEPS", 3)


def test_a_profile_names_the_parts_and_writes_a_trace(tmp_path, little):
    torch.set_num_threads(1)
    run_request = request(tmp_path / "run", write_images(tmp_path / "images.npy"))
    folder = profile_folder(run_request.run_dir)
    result = profile.profile(run_request.run, folder, Recorder())
    for part in ("data: images", "forward: encoder", "forward: decoder", "forward: posterior and the rest", "loss: mse",
                 "loss: l1", "backward", "gradient norm", "optimizer", "averaged weights"):  # fmt: skip
        assert result.parts[part] > 0
    assert "loss: charbonnier" not in result.parts
    assert json.loads((folder / "profile.json").read_text())["steps"] == result.steps
    names = {event.get("name") for event in json.loads((folder / "trace.json").read_text())["traceEvents"]}
    assert {"forward: encoder", "backward", "aten::convolution_backward"} <= names
    assert not run_request.run_dir.exists() and not RunFolder(folder).has_run()


def test_ranks_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="one device"):
        profile.profile(request(tmp_path / "run", tmp_path).run, tmp_path, Recorder())


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (
            RuntimeError("max_pool3d_backward_cuda does not have a deterministic implementation"),
            "no deterministic kernel",
        ),
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory outside of a training step"),
    ],
)
def test_what_stops_a_run_in_a_sentence_stops_a_profile_so(problem, words, tmp_path, monkeypatch):
    def fail(*_):
        raise problem

    monkeypatch.setattr(profile, "_measure", fail)
    with pytest.raises(EnvironmentProblem, match=words):
        profile.profile(request(tmp_path / "run", tmp_path).run, tmp_path, Recorder())


def test_a_part_inside_another_has_its_own_time():
    microseconds = {"forward": 6e6, "forward: encoder": 2e6, "forward: decoder": 3e6, "backward": 4e6, "aten::mm": 9e6}
    events = [SimpleNamespace(key=name, cpu_time_total=time) for name, time in microseconds.items()]
    parts = profile._seconds_by_part(SimpleNamespace(key_averages=lambda: events), total=12.0, count=2)
    assert parts == {
        "forward: encoder": 1.0,
        "forward: decoder": 1.5,
        "forward: posterior and the rest": 0.5,
        "backward": 2.0,
        profile.OTHER: 1.0,
    }


@pytest.mark.parametrize("family", [ConvConfig, ResidualConfig])
def test_figures_are_those_of_the_real_model(family):
    config = family(image_size=16, latents=5, base_channels=8, channels="auto")
    figures = model_cost(config)
    model = build_model(config.model_copy(update={"channels": 3}), seed=0)
    assert figures.parameters == sum(p.numel() for p in model.parameters())
    assert 2 * figures.forward_flops < figures.step_flops < 3 * figures.forward_flops
    kept = {}

    def keep(tensor):
        if not isinstance(tensor, torch.nn.Parameter) and not (tensor._base is not None and tensor.is_leaf):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(torch.rand(2, 3, 16, 16))
    real = sum(size for place, size in kept.items() if place not in own)
    assert output.reconstruction.requires_grad
    assert math.isclose(2 * figures.kept_bytes, real, rel_tol=0.01)


def test_a_convolution_takes_two_operations_per_weight():
    """conv: 3 -> 8 at 8 px, 8 -> 16 at 4 px, ...: counted by hand for the first two layers of a net of two."""
    one = model_cost(ConvConfig(image_size=16, latents=4, base_channels=8, channels=3, pca_init=False))
    two = model_cost(ConvConfig(image_size=16, latents=5, base_channels=8, channels=3, pca_init=False))
    widths, side = 64, 1
    more = 2 * (2 * widths * side**2) + 2 * widths * side**2  # two rows of the encoder's head, one of the decoder's
    assert two.forward_flops - one.forward_flops in (more, 4 * more, 16 * more)
