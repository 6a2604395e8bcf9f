"""`unified-vae export --to diffusers`: the folder, opened by a process with diffusers alone, is the model."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from lives import Recorder, request, write_images
from test_spatial_runs import spatial_request

from unified_vae.cli import main as command
from unified_vae.cli.door import enter
from unified_vae.core.errors import ConfigError, EnvironmentProblem
from unified_vae.experiment.export import comparison, diffusers_card, diffusers_folder, place
from unified_vae.experiment.export.comparison import Checked
from unified_vae.experiment.export.exporting import export
from unified_vae.experiment.export.request import ExportRequest, Format, Weights
from unified_vae.experiment.subject.subject import find
from unified_vae.models.pretrained import open_pretrained
from unified_vae.pipeline.fit import fit

SHORT = {"training": {"epochs": 1, "batch_size": 16, "samples": {"count": 2}}, "density": {"fit": "normal"}}

WITH_DIFFUSERS = """
import sys
import numpy as np, torch
from diffusers import AutoencoderKL
folder, numbers = sys.argv[1:]
vae = AutoencoderKL.from_pretrained(folder)
images = torch.from_numpy(np.load(numbers)["images"])
with torch.no_grad():
    latents = vae.encode(2 * images - 1).latent_dist.mode().contiguous()
    decoded = 0.5 + 0.5 * vae.decode(latents).sample
    scaled = (latents - vae.config.shift_factor) * vae.config.scaling_factor
np.savez(numbers, images=images, latents=latents, decoded=decoded, scaled=scaled)
assert not any(name.startswith("unified_vae") for name in sys.modules)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("spatial")
    fit(spatial_request(folder / "run", write_images(folder / "images.npy"), SHORT), [])
    return folder / "run"


def exported(target, **more):
    return export(ExportRequest(target, Format.DIFFUSERS, **more), Recorder())


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    done = exported(run, output=tmp_path_factory.mktemp("out") / "vae", images=4)
    assert [one.absolute for one in done.checked] == [0]
    return done.folder


def test_a_process_with_diffusers_alone_gets_the_models_numbers(run, folder, tmp_path):
    opened = open_pretrained(run / "model")
    pixels = np.load(run.parent / "images.npy")[:5].transpose(0, 3, 1, 2)
    images = torch.from_numpy(np.ascontiguousarray(pixels)).float() / 255  # another layout rounds in another way
    np.savez(tmp_path / "numbers.npz", images=images.numpy())
    words = [sys.executable, "-c", WITH_DIFFUSERS, str(folder), str(tmp_path / "numbers.npz")]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "numbers.npz")
    with torch.no_grad():
        latents = opened.model.encode(images).mean
        assert np.array_equal(found["latents"].reshape(len(images), -1), latents.numpy())
        assert np.array_equal(found["decoded"], opened.model.decode(latents.contiguous()).numpy())
    assert abs(found["scaled"].mean()) < 0.2 and found["scaled"].std() < 1.1  # 1 with the posteriors' own noise


def test_config_and_card_say_what_the_latents_are_like(run, folder):
    stats = open_pretrained(run / "model").stats
    config, card = json.loads((folder / "config.json").read_text()), (folder / "README.md").read_text()
    assert (config["scaling_factor"], config["shift_factor"]) == (stats.scale, stats.shift)
    assert (
        config["force_upcast"] is not json.loads((folder / "export.json").read_text())["half_precision"]["fp16"]["safe"]
    )
    assert "library_name: diffusers" in card and f"{stats.scale:.6g}" in card and "| 1 |" in card
    assert "bf16" in card and str(run.parent) not in card


def test_the_card_names_presets_apart_from_settings(run):
    subject = find(run, None, None, lambda _: None)
    record = replace(subject.record, names={"mode": "m", "loss": "sharp", "model": "small"})
    rows = [line.split(" | ")[0] for line in diffusers_card._training(replace(subject, record=record)).splitlines()]
    assert len(rows) == len(set(rows)) and {"| mode", "| preset: loss", "| loss"} <= set(rows)


def test_the_scale_of_raw_weights_is_measured(run, tmp_path, monkeypatch):
    equal = Checked("", 0.0, 0.0, "")  # that process is not started again
    monkeypatch.setattr(diffusers_folder, "compare", lambda *_: [equal])
    done = exported(run, output=tmp_path / "raw", weights=Weights.RAW, images=0)
    config = json.loads((done.folder / "config.json").read_text())
    assert config["scaling_factor"] != open_pretrained(run / "model").stats.scale
    assert 0 < config["scaling_factor"] < 10 and config["force_upcast"] is True


def test_other_numbers_are_no_export(run, tmp_path, monkeypatch):
    half = {f"{part}/{size}/{n}": np.full(1, 0.5) for part in ("encoder", "decoder") for size in (1, 2) for n in (0, 1)}
    monkeypatch.setattr(comparison, "_read", lambda *_: half)
    with pytest.raises(EnvironmentProblem, match="computes other numbers"):
        exported(run, output=tmp_path / "below" / "out", images=0)
    assert not list((tmp_path / "below").iterdir())


def test_mistakes_are_one_sentence(run, tmp_path, capsys, monkeypatch):
    fit(request(tmp_path / "vector", run.parent / "images.npy", SHORT), [])
    for words, code, part in (
        ([tmp_path / "vector", "--to", "diffusers"], 2, "--model-preset spatial_f8"),
        ([run, "--to", "diffusers", "--half", "fp16"], 2, "keeps float32"),
    ):
        given = enter(command.app, command.PROGRAM, ["export", *map(str, words)])
        error = capsys.readouterr().err
        assert (given, error.count("\n")) == (code, 1) and part in error, error
    assert not (tmp_path / "vector" / "exports").exists()
    model = shutil.copytree(run / "model", tmp_path / "model")
    description = json.loads((model / "config.json").read_text())
    del description["latent_stats"]
    (model / "config.json").write_text(json.dumps(description))
    with pytest.raises(ConfigError, match="measure it on with --data"):
        exported(model, output=tmp_path / "out")
    monkeypatch.setattr(place.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match="uv sync --extra diffusers"):
        exported(run)
