"""A tiny model and a labelled set of images for the verbs on finished models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_models import COUNT, SIZE, write_model
from PIL import Image

from unified_vae.config.model import SpatialConfig
from unified_vae.models.build import build_model
from unified_vae.models.pretrained import save_pretrained


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Packed images of these tests are kept apart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNIFIED_VAE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "a")


@pytest.fixture(scope="session")
def spatial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "spatial"
    config = SpatialConfig(
        image_size=SIZE, downsample_factor=4, latent_channels=3, base_channels=4, layers_per_block=1, channels=3
    )
    save_pretrained(folder, config, build_model(config, seed=0).state_dict(), {"loss": {}})
    return folder


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
