"""A model's folder: exact round trip, and one clear sentence for each kind of damage."""

import json

import pytest
import torch

from unified_vae.config.model import ConvConfig, ResidualConfig
from unified_vae.core.errors import CheckpointError
from unified_vae.models.build import build_model
from unified_vae.models.pretrained import load_pretrained, save_pretrained

CONFIG = ConvConfig(image_size=16, latents=4, base_channels=4, channels=1)


@pytest.fixture
def folder(tmp_path):
    save_pretrained(tmp_path / "model", CONFIG, build_model(CONFIG, seed=3).state_dict(), {"run": {"step": 7}})
    return tmp_path / "model"


def test_what_was_saved_comes_back_bit_for_bit(folder):
    images = torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        expected = build_model(CONFIG, seed=3).eval()(images)
        result = load_pretrained(folder)(images)
    assert torch.equal(result.reconstruction, expected.reconstruction)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_the_folder_of_a_run_points_to_its_model(folder):
    with pytest.raises(CheckpointError, match=r"the model is in .*model"):
        load_pretrained(str(folder.parent))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "noise"])
def test_damage_is_named(folder, name, damage):
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "noise": b"\xff\x00" * 200}[damage])
    with pytest.raises(CheckpointError, match="model"):
        load_pretrained(folder)


OLD_NAMES = {
    "pca_skip.to_pixels": "linear.to_picture",
    "pca_skip": "linear",
    "encoder.pre_encoder.conv_in": "encoder.prepare.first",
    "encoder.pre_encoder.conv_out": "encoder.prepare.last",
    "encoder.pre_encoder": "encoder.prepare",
    "decoder.bottleneck": "decoder.neck",
    "decoder.conv_out": "decoder.last",
    "decoder.residual_scale": "decoder.detail_gain",
    "pca_conditioning": "look",
}


@pytest.mark.parametrize("family", [ConvConfig, ResidualConfig])
def test_tensors_of_before_load_under_their_new_names(family, tmp_path):
    """Of a model's folder, and of an optimizer's state."""
    config = family(image_size=16, latents=4, base_channels=8, channels=1)
    model = build_model(config, seed=3)

    def old_name(name):
        for now, before in OLD_NAMES.items():
            name = name.replace(now, before)
        return name

    old = {old_name(name): tensor for name, tensor in model.state_dict().items()}
    assert len(old.keys() - model.state_dict().keys()) >= 9
    save_pretrained(tmp_path / "model", config, old, {})
    loaded = load_pretrained(tmp_path / "model").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())
    slots = {f"{old_name(name)}/exp_avg": tensor for name, tensor in model.named_parameters()}
    assert model.upgrade_names(slots).keys() == {f"{name}/exp_avg" for name, _ in model.named_parameters()}


def test_files_without_later_settings_load_as_they_were(tmp_path):
    before = {"pre_encoder_blocks": 0, "bottleneck_channels": 8, "refine_resolution": "full"}
    config = ResidualConfig(image_size=128, latents=4, base_channels=4, max_multiplier=2, channels=1, **before)
    save_pretrained(tmp_path, config, build_model(config, seed=3).state_dict(), {})
    description = json.loads((tmp_path / "config.json").read_text())
    for name in before:
        del description["model"][name]
    (tmp_path / "config.json").write_text(json.dumps(description))
    images = torch.rand(2, 1, 128, 128)
    with torch.no_grad():
        expected = build_model(config, seed=3).eval()(images).reconstruction
        assert torch.equal(load_pretrained(tmp_path)(images).reconstruction, expected)


def test_weights_of_another_shape_are_refused(folder):
    other = CONFIG.model_copy(update={"latents": 5})
    save_pretrained(folder.parent / "other", other, build_model(other).state_dict(), {})
    (folder.parent / "other" / "config.json").replace(folder / "config.json")
    with pytest.raises(CheckpointError, match="do not fit"):
        load_pretrained(folder)
