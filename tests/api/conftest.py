"""A small trained model as a run leaves it."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_models import RUN, config, posteriors

from unified_vae import VAE
from unified_vae.models.build import build_model
from unified_vae.models.density import fit_gaussian
from unified_vae.models.pretrained import measure_latent_stats, save_density, save_pretrained, save_stats


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with a model of three channels, a density and statistics."""
    folder = tmp_path_factory.mktemp("run")
    about = {"run": RUN, "loss": {"mse": {"weight": 1.0}, "kl": {"weight": 2.0}}, "background": "black"}
    save_pretrained(folder / "model", config(3), build_model(config(3), seed=3).state_dict(), about)
    save_stats(folder / "model", measure_latent_stats(posteriors()))
    save_density(folder / "model", fit_gaussian(posteriors()), {"images": 40})
    return folder


@pytest.fixture(scope="session")
def vae(run: Path) -> VAE:
    return VAE.from_pretrained(run, device="cpu")


@pytest.fixture(scope="session")
def grey() -> VAE:
    return VAE(build_model(config(1), seed=4), config(1))
