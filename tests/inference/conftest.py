"""Small trained models as a run leaves them, and a labeled set of images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.inference.small_models import COUNT, RUN, SIZE, config, posteriors, spatial_config, write_model
from unified_vae import VAE
from unified_vae.models.build import build_model
from unified_vae.models.density import fit_gaussian
from unified_vae.models.pretrained import measure_latent_stats, save_density, save_pretrained, save_stats


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Packed images of these tests are kept apart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNIFIED_VAE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


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
def gray() -> VAE:
    return VAE(build_model(config(1), seed=4), config(1))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder without a run, a density or a known loss."""
    return write_model(tmp_path_factory.mktemp("models") / "a")


@pytest.fixture(scope="session")
def spatial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "spatial", settings=spatial_config())


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two classes, with names that sort by their numbers, a letter beyond ASCII, and a copy."""
    folder = tmp_path_factory.mktemp("data") / "pictures"
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        path = folder / ("cats" if number % 3 else "dögs") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (SIZE + number % 4, SIZE, 3), dtype=np.uint8)).save(path)
    (folder / "cats" / "99.png").write_bytes((folder / "cats" / "1.png").read_bytes())
    return folder
