"""Runs of the spatial family: they learn, are cured, continued and sampled from like the others."""

import json
from types import SimpleNamespace

import torch

from tests.helpers.runs import Recorder, request, train, write_images
from unified_vae.analysis.preflight import Preflight
from unified_vae.config.model import SpatialConfig
from unified_vae.config.run import RunConfig
from unified_vae.models.build import build_model
from unified_vae.models.pretrained import load_pretrained
from unified_vae.pipeline.resume_fix import reinit_dead_units

SHAPE = {"downsample_factor": 4, "latent_channels": 2, "base_channels": 8, "layers_per_block": 1}
SETTINGS = {
    "loss": {"l1": {"weight": 0.0}, "kl": {"weight": 2.0}},
    "training": {"epochs": 8, "batch_size": 16, "optimizer": {"kind": "adamw", "lr": 3e-3}},
    "data": {"augment": {"horizontal_flip": False}},
}


def spatial_request(run_dir, source, change=None, shape=None, **more):
    """As `helpers.runs.request`, whose model is of another family."""
    asked = request(run_dir, source, {**SETTINGS, **(change or {})}, **more)
    run = asked.run
    model = {"family": "spatial", "image_size": 16, **SHAPE, **(shape or {})}
    content = {**run.config.model_dump(mode="json"), "model": model}
    config = type(run.config).model_validate_json(json.dumps(content))
    return type(asked)(type(run)(config, {}, {}), run_dir, True, asked.command, **more)


def test_a_run_learns_and_ends_with_a_model_that_samples(tmp_path):
    torch.set_num_threads(1)
    source = write_images(tmp_path / "images.npy", count=130)
    seen = Recorder()
    train(spatial_request(tmp_path / "run", source), [seen])
    first, last = seen.validations[0].values, seen.validations[-1].values
    assert last["psnr"] > last["psnr.mean_image"] + 3
    assert last["psnr"] > first["psnr"] and last["loss.total"] < first["loss.total"]
    flight = Preflight.from_json(json.loads((tmp_path / "run" / "preflight.json").read_text()))
    assert (flight.positions, flight.latents, len(flight.spectrum)) == (16, 32, 16 * len(flight.eigenvalues))
    facts = dict(seen.started[0].facts)
    assert "2 for each of the 16 patches" in facts["PCA line"]
    model = load_pretrained(tmp_path / "run" / "model")
    assert model.sample(3, torch.Generator().manual_seed(0)).shape == (3, 3, 16, 16)


def test_thousands_of_latents_are_no_trouble(tmp_path):
    """Validation, sheets, density and diagnosis of a map that is too large for all pairs of its units."""
    torch.set_num_threads(1)
    source = write_images(tmp_path / "images.npy", size=64)
    seen = Recorder()
    change = {"training": {"max_steps": 2, "samples": {"count": 2}}, "density": {"fit": "auto"}}
    train(spatial_request(tmp_path / "run", source, change, {"image_size": 64, "latent_channels": 9}), [seen])
    assert seen.finished.step == 2 and len(seen.validations[-1].kl_per_unit) == 2304
    assert any(line.startswith("diagnosis: ") for line in seen.finished.advice)
    assert load_pretrained(tmp_path / "run" / "model").density.kind in ("normal", "units")
    assert len(list((tmp_path / "run" / "samples").glob("*.png"))) >= 4


def test_a_run_is_cured(tmp_path):
    torch.set_num_threads(1)
    source = write_images(tmp_path / "images.npy")
    collapsed = {"training": {"max_steps": 2}, "loss": {"kl": {"weight": 1e5}}}
    first = Recorder()
    train(spatial_request(tmp_path / "run", source, collapsed), [first])
    assert any("model.latent_channels=" in notice for notice in first.notices)
    cured = Recorder()
    train(
        spatial_request(tmp_path / "cured", source, {"training": {"max_steps": 1}}, fix_from=tmp_path / "run"), [cured]
    )
    assert any(notice.startswith("diagnosis: ") for notice in cured.notices)
    assert cured.finished.step == 1


def test_a_channel_without_active_units_is_reinitialized():
    config = RunConfig(model=SpatialConfig(image_size=16, channels=3, **SHAPE))
    model, before = (build_model(config.model, seed=0) for _ in range(2))
    train_step = SimpleNamespace(model=model, ema=SimpleNamespace(model=build_model(config.model, seed=0)))
    data = SimpleNamespace(validation=[0, 1])
    job = SimpleNamespace(train_step=train_step, config=config, data=data, pca=(), preflight=None)
    idle = [False] * 16  # each channel has 16 units
    assert reinit_dead_units(job, [True, *idle[1:], *idle]) == 16
    rows = (model.encoder.quant_conv.weight != before.encoder.quant_conv.weight).flatten(1).any(1)
    assert rows.tolist() == [False, True, False, True]  # means, then logarithms of variances
