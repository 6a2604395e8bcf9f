"""At its end a run fits a latent density, stores it with the model, and draws its samples."""

import json
from types import SimpleNamespace

import pytest
import torch

from tests.helpers.runs import Recorder, request, train, write_images
from unified_vae.analysis.density import encode_training_images
from unified_vae.config.data import DataConfig
from unified_vae.data.prepare import open_data
from unified_vae.models.pretrained import load_pretrained, open_pretrained
from unified_vae.pipeline import finalize, setup

SHORT = {"training": {"epochs": 1, "samples": {"count": 4}}}


@pytest.mark.parametrize("kind", ["gaussian", "normal"])
def test_the_density_asked_for_is_in_the_model(tmp_path, kind):
    source = write_images(tmp_path / "images.npy")
    change = {**SHORT, "density": {"fit": kind, "max_images": 20}}
    recorder = Recorder()
    train(request(tmp_path / "run", source, change), [recorder])
    about = json.loads((tmp_path / "run" / "model" / "config.json").read_text())["density"]
    assert (about["kind"], about["images"]) == (kind, 20 if kind == "gaussian" else 0)
    model = load_pretrained(tmp_path / "run" / "model")
    first, again = (model.sample(3, torch.Generator().manual_seed(0)) for _ in range(2))
    assert first.shape == (3, 3, 16, 16) and torch.equal(first, again)
    fresh = model.sample(3, torch.Generator().manual_seed(0), density="normal")
    assert torch.equal(first, fresh) == (kind == "normal")
    assert (tmp_path / "run" / "samples" / "final-samples.png").is_file()
    assert any("final-samples.png" in line for line in recorder.finished.advice)


@pytest.mark.parametrize(("at_most", "mirrored"), [(20_000, True), (20, False)])
def test_the_density_sees_mirrored_images_where_they_are_few(tmp_path, at_most, mirrored):
    source = write_images(tmp_path / "images.npy")
    change = {**SHORT, "density": {"fit": "gaussian", "max_images": at_most}}
    recorder = Recorder()
    phases = []
    recorder.phase = lambda what, *_: phases.append(what)
    train(request(tmp_path / "run", source, change | {"data": {"augment": {"horizontal_flip": True}}}), [recorder])
    assert any("mirrored" in phase for phase in phases) == mirrored
    model = load_pretrained(tmp_path / "run" / "model")
    about = json.loads((tmp_path / "run" / "model" / "config.json").read_text())["density"]
    assert about["images"] == (20 if not mirrored else len(posteriors_of(model, source, tmp_path).mean))


def posteriors_of(model, source, folder):
    data = DataConfig(source=str(source), cache_dir=str(folder / "cache"))
    return encode_training_images(model, open_data(data, 16, None, lambda *_: None).train, 20_000, 0)


def test_the_seconds_of_a_run_are_those_of_its_end_too(tmp_path, monkeypatch):
    late, real, recorder = [0.0], finalize.fit_density, Recorder()

    def slow(*args):
        late[0] += 1000
        return real(*args)

    monkeypatch.setattr(finalize, "fit_density", slow)
    for module in (setup, finalize):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: late[0]))
    train(request(tmp_path / "run", write_images(tmp_path / "images.npy"), SHORT), [recorder])
    assert recorder.finished.seconds == 1000


def test_a_fit_that_fails_costs_nothing_but_the_density(tmp_path, monkeypatch):
    def broken(*_):
        raise ArithmeticError("not positive definite")

    monkeypatch.setattr(finalize, "fit_density", broken)
    recorder = Recorder()
    train(request(tmp_path / "run", write_images(tmp_path / "images.npy"), SHORT), [recorder])
    assert any("not positive definite" in line for line in recorder.finished.advice)
    assert load_pretrained(tmp_path / "run" / "model").density.kind == "normal"


def test_an_interrupted_fit_is_made_up_by_the_same_command(tmp_path, monkeypatch):
    run_request = request(tmp_path / "run", write_images(tmp_path / "images.npy"), SHORT)
    with monkeypatch.context() as broken:
        broken.setattr(finalize, "fit_density", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(run_request, [])
    assert train(run_request, []).outcome == "finished"
    assert "density" in json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert train(run_request, []).outcome == "already finished"


def test_statistics_and_a_card_are_beside_the_model(tmp_path):
    source = write_images(tmp_path / "images.npy")
    settings = {**SHORT, "density": {"fit": "normal", "max_images": 20}, "license": "cc0-1.0"}
    train(request(tmp_path / "run", source, {**settings, "data": {"background": "black"}}), [])
    result = open_pretrained(tmp_path / "run" / "model")
    data = DataConfig(source=str(source), background="black", cache_dir=str(tmp_path / "cache"))
    latents = encode_training_images(result.model, open_data(data, 16, None, lambda *_: None).train, 20, 0)
    assert result.stats is not None and result.stats.images == 20
    assert torch.equal(result.stats.mean, latents.mean.double().mean(0).float())
    assert result.description["background"] == "black"
    row = next(line for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines() if "validation" in line)
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "license: cc0-1.0" in card and f"{json.loads(row)['psnr']:.2f} dB" in card
    assert (tmp_path / "run" / "model" / "samples.png").is_file()


@pytest.mark.parametrize("broken", ["measure_latent_stats", "write_card"])
def test_neither_statistics_nor_a_card_can_end_a_run(tmp_path, monkeypatch, broken):
    def fails(*_):
        raise OSError("no space")

    monkeypatch.setattr(finalize, broken, fails)
    recorder = Recorder()
    run_request = request(tmp_path / "run", write_images(tmp_path / "images.npy"), SHORT)
    assert train(run_request, [recorder]).exit_code == 0
    assert any("no space" in notice for notice in recorder.notices)
    assert load_pretrained(tmp_path / "run" / "model").density.kind == "gaussian"
    assert train(run_request, []).outcome == "already finished"
