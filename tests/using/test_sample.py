"""What `sample` says of where its latents come from."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_models import LATENTS, write_model

from unified_vae.experiment.using.outputs import Places
from unified_vae.experiment.using.sample import SampleRequest, sample
from unified_vae.models.density.normal import NormalDensity
from unified_vae.models.pretrained import save_density
from unified_vae.training.observers import Observer

FIT = {"log_likelihood": {"normal": -1.0, "gaussian": -2.0, "mixture": -3.0}, "asked": {"fit": "auto"}, "note": ""}


@pytest.mark.parametrize(
    ("about", "words"),
    [
        (None, "no latent density was fitted to these weights: samples are from N(0, I)"),
        ({}, "no latent density was fitted to these weights: samples are from N(0, I)"),
        (FIT, "samples are from N(0, I), the likeliest of the 3 densities fitted to these weights"),
        (
            {"log_likelihood": {}, "asked": {"fit": "normal"}},
            "samples are from N(0, I), as density.fit=normal asked for",
        ),
        ({"asked": {"fit": "auto"}, "note": "5 images are too few"}, "5 images are too few"),
    ],
)
def test_why_samples_are_from_the_prior(
    about: dict[str, object] | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(tmp_path / "model")
    if about is not None:
        save_density(folder, NormalDensity(LATENTS), about)
    notices: list[str] = []
    listening = Observer()
    monkeypatch.setattr(listening, "notice", notices.append)
    places = Places(sheet=tmp_path / "a.png", folder=None)
    sample(SampleRequest(str(folder), 1, "fitted", 1.0, 0, places, device="cpu"), listening)
    sample(SampleRequest(str(folder), 1, "normal", 1.0, 0, places, device="cpu"), listening)
    assert notices == [words]
