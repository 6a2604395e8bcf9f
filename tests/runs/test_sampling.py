"""At its end a run fits a latent density, stores it with the model, and draws its samples."""

import json

import pytest
import torch
from lives import Recorder, request, write_images

from unified_vae.experiment import sampling
from unified_vae.experiment.fit import fit
from unified_vae.models.pretrained import load_pretrained

SHORT = {"training": {"epochs": 1, "samples": {"count": 4}}}


@pytest.mark.parametrize("kind", ["gaussian", "normal"])
def test_the_density_asked_for_is_in_the_model(tmp_path, kind):
    source = write_images(tmp_path / "images.npy")
    change = {**SHORT, "density": {"fit": kind, "max_images": 20}}
    seen = Recorder()
    fit(request(tmp_path / "run", source, change), [seen])
    about = json.loads((tmp_path / "run" / "model" / "config.json").read_text())["density"]
    assert (about["kind"], about["images"]) == (kind, 20 if kind == "gaussian" else 0)
    model = load_pretrained(tmp_path / "run" / "model")
    first, again = (model.sample(3, torch.Generator().manual_seed(0)) for _ in range(2))
    assert first.shape == (3, 3, 16, 16) and torch.equal(first, again)
    fresh = model.sample(3, torch.Generator().manual_seed(0), density="normal")
    assert torch.equal(first, fresh) == (kind == "normal")
    assert (tmp_path / "run" / "samples" / "final-samples.png").is_file()
    assert any("final-samples.png" in line for line in seen.finished.advice)


def test_a_fit_that_fails_costs_nothing_but_the_density(tmp_path, monkeypatch):
    def broken(*_):
        raise ArithmeticError("not positive definite")

    monkeypatch.setattr(sampling, "fit_density", broken)
    seen = Recorder()
    fit(request(tmp_path / "run", write_images(tmp_path / "images.npy"), SHORT), [seen])
    assert any("not positive definite" in line for line in seen.finished.advice)
    assert load_pretrained(tmp_path / "run" / "model").density.kind == "normal"


def test_an_interrupted_fit_is_made_up_by_the_same_command(tmp_path, monkeypatch):
    some = request(tmp_path / "run", write_images(tmp_path / "images.npy"), SHORT)
    with monkeypatch.context() as broken:
        broken.setattr(sampling, "fit_density", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fit(some, [])
    assert fit(some, []).outcome == "finished"
    assert "density" in json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert fit(some, []).outcome == "already finished"
