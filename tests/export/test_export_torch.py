"""`torch.export` programs and compiled packages of a run, opened by torch alone."""

import pytest
import torch

from tests.export.export_helpers import exported, model_of, outputs_of_parts, relative_differences, trained
from unified_vae.config.model import SpatialConfig
from unified_vae.core.errors import EnvironmentProblem
from unified_vae.export import export
from unified_vae.export.formats import parts
from unified_vae.models.build import build_model

WITH_TORCH = """
import numpy as np, torch
folder, numbers = sys.argv[1:]
torch.set_num_threads(1)
given = {name: torch.from_numpy(value) for name, value in np.load(numbers).items()}
encoder, decoder = (torch.export.load(f"{folder}/{name}.pt2").module() for name in ("encoder", "decoder"))
outputs = {}
with torch.no_grad():
    for batch in (1, 2, 7):
        outputs[f"mean{batch}"], outputs[f"logvar{batch}"] = encoder(given[f"images{batch}"])
        (outputs[f"image{batch}"],) = decoder(given[f"latents{batch}"])
np.savez(numbers, **{name: value.numpy() for name, value in outputs.items()})
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("torch"))


def test_a_process_with_torch_alone_gets_equal_numbers(run, tmp_path, monkeypatch):
    with monkeypatch.context() as without:  # the command's own fresh process: the one below is this test's
        without.setattr(export, "_read_in_fresh_process", outputs_of_parts)
        done, _ = exported(run, "torch", output=tmp_path / "out", images=0)
    differences, _ = relative_differences(WITH_TORCH, done.folder, model_of(run), tmp_path)
    assert max(differences) == 0


@pytest.mark.parametrize("fault", ["number", "shape", "not a number"])
def test_the_smallest_difference_is_refused_and_nothing_is_left(run, tmp_path, monkeypatch, fault):
    def other(*words):
        result = outputs_of_parts(*words)
        one = result["decoder/7/0"]
        if fault == "shape":
            result["decoder/7/0"] = one[:1]
        else:
            one.flat[0] = one.flat[0] + 1e-7 if fault == "number" else float("nan")
        return result

    monkeypatch.setattr(export, "_read_in_fresh_process", other)
    monkeypatch.setattr("torch.export.save", lambda program, path: path.write_bytes(b"a program"))
    with pytest.raises(EnvironmentProblem, match="other numbers"):
        exported(run, "torch", output=tmp_path / "below" / "out", images=0)
    assert not list((tmp_path / "below").iterdir())


def test_the_fresh_process_reads_the_files_themselves(tmp_path):
    """A file that is none is a sentence, with what the library said of it."""
    (tmp_path / "out").mkdir()
    model = build_model(SpatialConfig(image_size=16, downsample_factor=4, base_channels=4, channels=1), seed=0).eval()
    for part in parts(model):
        (tmp_path / "out" / f"{part.name}.onnx").write_bytes(b"no model")
    with pytest.raises(EnvironmentProblem, match="could not use them"):
        export.compare(tmp_path / "out", parts(model), "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_spatial_latents_are_traced_for_any_batch():
    config = SpatialConfig(image_size=16, downsample_factor=4, base_channels=4, channel_mult=[1, 1, 1], channels=3)
    for part in parts(build_model(config, seed=0).eval()):
        traced = part.traced()
        assert not any(("decoder" if part.name == "encoder" else "encoder") in name for name in traced.state_dict)
        program = traced.module()
        for batch in part.batches:
            with torch.no_grad():
                result = program(part.example(batch))
            assert all(map(torch.equal, result, part.outputs(batch)))
