"""`unified-vae export --to diffusers`: the folder, opened by a process with diffusers alone, is the model."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.helpers.runs import Recorder, request, train, write_images
from tests.pipeline.test_spatial_runs import spatial_request
from unified_vae.cli.app import main
from unified_vae.core.errors import ConfigError, EnvironmentProblem
from unified_vae.export import export as export_module
from unified_vae.export.export import Comparison, export
from unified_vae.export.formats import write_diffusers
from unified_vae.inference.load import load_model
from unified_vae.models.pretrained import open_pretrained

SHORT = {"training": {"epochs": 1, "batch_size": 16, "samples": {"count": 2}}, "density": {"fit": "normal"}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("spatial")
    train(spatial_request(folder / "run", write_images(folder / "images.npy"), SHORT), [])
    return folder / "run"


def exported(target, **more):
    return export(target, "diffusers", **more, observer=Recorder())


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    done = exported(run, output=tmp_path_factory.mktemp("out") / "vae", images=4)
    assert [one.absolute for one in done.compared] == [0]
    return done.folder


def test_scaled_latents_have_mean_0_and_variance_1(run, folder):
    """That diffusers computes the model's numbers is seen by the export's own fresh process, of the fixture above."""
    config = json.loads((folder / "config.json").read_text())
    pixels = np.load(run.parent / "images.npy").transpose(0, 3, 1, 2)
    with torch.no_grad():
        latents = open_pretrained(run / "model").model.encode(torch.from_numpy(pixels).float() / 255).mean
    scaled = (latents - config["shift_factor"]) * config["scaling_factor"]
    assert abs(scaled.mean()) < 0.2 and scaled.std() < 1.1  # 1 with the posteriors' own noise


def test_config_and_card_say_what_the_latents_are_like(run, folder):
    stats = open_pretrained(run / "model").stats
    config, card = json.loads((folder / "config.json").read_text()), (folder / "README.md").read_text()
    assert (config["scaling_factor"], config["shift_factor"]) == (stats.scale, stats.shift)
    assert (
        config["force_upcast"] is not json.loads((folder / "export.json").read_text())["half_precision"]["fp16"]["safe"]
    )
    assert "library_name: diffusers" in card and f"{stats.scale:.6g}" in card and "| 1 |" in card
    assert "bf16" in card and str(run.parent) not in card


def test_the_card_names_presets_apart_from_settings(run, tmp_path):
    loaded = load_model(run)
    record = replace(loaded.record, names={"mode": "m", "loss": "sharp", "model": "small"})
    stats = open_pretrained(run / "model").stats
    write_diffusers(tmp_path, replace(loaded, record=record), loaded.config.model, stats, None)
    training = (tmp_path / "README.md").read_text().partition("## Training")[2]
    rows = [line.split(" | ")[0] for line in training.splitlines()]
    rows = [row for row in rows if row]
    assert len(rows) == len(set(rows)) and {"| mode", "| preset: loss", "| loss"} <= set(rows)


def test_the_scale_of_raw_weights_is_measured(run, tmp_path, monkeypatch):
    equal = Comparison("", 0.0, 0.0, "")  # that process is not started again
    monkeypatch.setattr(export_module, "compare", lambda *_, **__: [equal])
    done = exported(run, output=tmp_path / "raw", weights="raw", images=0)
    config = json.loads((done.folder / "config.json").read_text())
    assert config["scaling_factor"] != open_pretrained(run / "model").stats.scale
    assert 0 < config["scaling_factor"] < 10 and config["force_upcast"] is True


def test_other_numbers_are_no_export(run, tmp_path, monkeypatch):
    half = {f"{part}/{size}/{n}": np.full(1, 0.5) for part in ("encoder", "decoder") for size in (1, 2) for n in (0, 1)}
    monkeypatch.setattr(export_module, "_read_in_fresh_process", lambda *_: half)
    with pytest.raises(EnvironmentProblem, match="computes other numbers"):
        exported(run, output=tmp_path / "below" / "out", images=0)
    assert not list((tmp_path / "below").iterdir())


def test_mistakes_are_one_sentence(run, tmp_path, capsys, monkeypatch):
    train(request(tmp_path / "vector", run.parent / "images.npy", SHORT), [])
    for words, code, part in (
        ([tmp_path / "vector", "--to", "diffusers"], 2, "--model-preset spatial_f8"),
        ([run, "--to", "diffusers", "--half", "fp16"], 2, "keeps float32"),
    ):
        given = main("unified-vae", ["export", *map(str, words)])
        error = capsys.readouterr().err
        assert (given, error.count("\n")) == (code, 1) and part in error, error
    assert not (tmp_path / "vector" / "exports").exists()
    model = shutil.copytree(run / "model", tmp_path / "model")
    description = json.loads((model / "config.json").read_text())
    del description["latent_stats"]
    (model / "config.json").write_text(json.dumps(description))
    with pytest.raises(ConfigError, match="measure them on with --data"):
        exported(model, output=tmp_path / "out")
    monkeypatch.setattr(export_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match="uv sync --extra diffusers"):
        exported(run)
