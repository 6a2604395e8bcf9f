"""ONNX files of every family and of a run, opened by onnxruntime."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from tests.export.export_helpers import exported, model_of, outputs_of_parts, relative_differences, trained
from unified_vae.config.model import ConvConfig, ResidualConfig, SpatialConfig
from unified_vae.export import export
from unified_vae.export.formats import OPSET, parts, write_onnx
from unified_vae.models.build import build_model

WITH_ONNXRUNTIME = """
import numpy as np, onnxruntime
folder, numbers = sys.argv[1:]
given = dict(np.load(numbers))
encoder, decoder = (onnxruntime.InferenceSession(f"{folder}/{name}.onnx") for name in ("encoder", "decoder"))
outputs = {}
for batch in (1, 2, 7):
    images = {"images": given[f"images{batch}"]}
    outputs[f"mean{batch}"], outputs[f"logvar{batch}"] = encoder.run(["mean", "logvar"], images)
    (outputs[f"image{batch}"],) = decoder.run(["image"], {"latents": given[f"latents{batch}"]})
np.savez(numbers, **outputs)
assert "torch" not in sys.modules
print(encoder.get_modelmeta().custom_metadata_map)
"""
SPATIAL = SpatialConfig(
    image_size=16, downsample_factor=4, base_channels=4, channel_mult=[1, 1, 1], layers_per_block=1, channels=3
)
FAMILIES = {  # the half that has something of its own
    "conv whose PCA skip averages": ("encoder", ConvConfig(image_size=65, latents=3, base_channels=4, channels=1)),
    "residual of no whole stride": ("decoder", ResidualConfig(image_size=20, latents=3, base_channels=4, channels=3)),
    "spatial": ("decoder", SPATIAL),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Its 58 dB on these images show all rounding."""
    return trained(tmp_path_factory.mktemp("onnx"), {"model": {"pca_init": False}})


def test_onnxruntime_alone_computes_the_models_numbers(run, tmp_path, monkeypatch):
    with monkeypatch.context() as without:  # the command's own fresh process: the one below is this test's
        without.setattr(export, "_read_in_fresh_process", outputs_of_parts)
        done, _ = exported(run, "onnx", output=tmp_path / "out", images=0)
    assert set(done.files) == {"encoder.onnx", "decoder.onnx", "export.json"}
    differences, said = relative_differences(WITH_ONNXRUNTIME, done.folder, model_of(run), tmp_path)
    assert max(differences) <= 1e-4
    for fact in ("'image_size': '16'", "'channels': '3'", "'latents': '4'", "[0, 1]", "'precision': 'fp32'"):
        assert fact in said


def test_fp16_has_fp16_weights_and_is_close(run, tmp_path):
    half, _ = exported(run, "onnx", output=tmp_path / "half", half="fp16")
    stored = onnx.load(tmp_path / "half" / "decoder.onnx").graph.initializer
    weights = [tensor.data_type for tensor in stored if len(tensor.dims) > 1]
    assert weights and set(weights) == {onnx.TensorProto.FLOAT16}
    assert 1e-6 < max(one.relative for one in half.compared) < 0.03


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_any_batch(family, tmp_path):
    half, config = FAMILIES[family]
    model = build_model(config, seed=0).eval()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    for part in (part for part in parts(model) if part.name == half):
        path = tmp_path / f"{part.name}.onnx"
        write_onnx(path, part, {"size": "8"})
        session = onnxruntime.InferenceSession(path)
        assert [value.shape[0] for value in (*session.get_inputs(), *session.get_outputs())].count("batch") >= 2
        assert {entry.version for entry in onnx.load(path).opset_import if not entry.domain} == {OPSET}
        for batch in part.batches:
            result = session.run(list(part.output_names), {part.input_name: part.example(batch).numpy()})
            for expected, actual in zip(part.outputs(batch), result, strict=True):
                np.testing.assert_allclose(actual, expected.numpy(), atol=1e-4 * float(expected.abs().max()))
