"""torchvision and Hugging Face sets, through small stand-ins with the interface of the real libraries."""

from __future__ import annotations

import inspect
import sys
import types
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.images import opened, png
from unified_vae.config.data import DataConfig
from unified_vae.core.errors import DataError, EnvironmentProblem
from unified_vae.data.prepare import open_data

PIXELS = np.random.default_rng(0).integers(0, 256, (10, 8, 8), dtype=np.uint8)


class Digits:
    """A set with `train=`, targets, and files that must be downloaded first."""

    classes = ("zero", "one")
    network = True

    def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
        marker = Path(root) / "raw" / "digits.bin"
        if download and not type(self).network:
            raise urllib.error.URLError("no route to host")
        if download:
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.write_bytes(b"digits")
        if not marker.exists():
            raise RuntimeError("Dataset not found. You can use download=True to download it")
        self.rows = PIXELS[:8] if train else PIXELS[8:]
        self.targets = [int(row[0, 0]) % 2 for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.rows[index]), self.targets[index]


class Scenes(Digits):
    """A set with `split=` and other names for its parts."""

    def __init__(self, root: str, split: str = "train", download: bool = False) -> None:
        if split not in ("train", "test"):
            raise ValueError(f"Unknown value '{split}' for argument split.")
        super().__init__(root, split == "train", download)


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = types.ModuleType("torchvision.datasets")
    datasets.__dict__.update(__all__=("Digits", "Scenes"), Digits=Digits, Scenes=Scenes)
    package = types.ModuleType("torchvision")
    package.__dict__["datasets"] = datasets
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)


@pytest.mark.parametrize("name", ["Digits", "Scenes"])
def test_torchvision_sets_keep_their_own_split(name: str, torchvision: None, tmp_path: Path) -> None:
    data = opened(f"torchvision:{name}", tmp_path)
    assert (len(data.train), len(data.validation), data.channels) == (8, 2, 1)
    rows = [int(image.split()[-1]) for image in data.train.names]
    np.testing.assert_array_equal(data.train.images[..., 0], PIXELS[:8][rows])
    assert data.train.labels is not None
    np.testing.assert_array_equal(data.train.labels["class"], PIXELS[:8][rows][:, 0, 0] % 2)


def test_a_download_is_announced_and_happens_once(torchvision: None, tmp_path: Path) -> None:
    messages: list[str] = []
    config = DataConfig(source="torchvision:Digits", cache_dir=str(tmp_path))
    open_data(config, 8, None, lambda text, done, total: messages.append(text))
    assert [text for text in messages if "downloading torchvision:Digits into" in text] == messages[:1]
    messages.clear()
    open_data(config, 8, None, lambda text, done, total: messages.append(text))
    assert messages == []


def test_a_warm_cache_does_not_import_torchvision(
    torchvision: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold = opened("torchvision:Digits", tmp_path)
    monkeypatch.setitem(sys.modules, "torchvision", None)  # importing it would now raise
    assert opened("torchvision:Digits", tmp_path).fingerprint == cold.fingerprint


def test_torchvision_errors_are_sentences(torchvision: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="Did you mean 'Digits'"):
        opened("torchvision:Digit", tmp_path)
    monkeypatch.setattr(Digits, "network", False)
    with pytest.raises(EnvironmentProblem, match=r"could not be downloaded.*network"):
        opened("torchvision:Digits", tmp_path)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(EnvironmentProblem, match="needs torchvision"):
        opened("torchvision:Digits", tmp_path)


@pytest.mark.slow
def test_the_real_torchvision_has_the_interface_of_the_stand_in(tmp_path: Path) -> None:
    from torchvision import datasets

    assert "FakeData" in datasets.__all__
    for name, choice in (("CIFAR10", "train"), ("MNIST", "train"), ("STL10", "split"), ("CelebA", "split")):
        parameters = inspect.signature(getattr(datasets, name)).parameters
        assert {"root", "download", choice} <= parameters.keys()
    data = opened("torchvision:FakeData", tmp_path, max_images=20)
    assert (len(data.train), data.channels) == (20, 3)


class Column:
    """One split of a Hub set, as much of `datasets.Dataset` as is used."""

    def __init__(self, count: int, first: int, features: dict[str, Any]) -> None:
        self.features = features
        self._fingerprint = f"{count}-{first}"
        self.cells = [{"bytes": png(first + index), "path": None} for index in range(count)]
        self.numbers = [index % 2 for index in range(count)]

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, key: int | str) -> Any:
        return self.numbers if key == "label" else {"image": self.cells[int(key)]}

    def cast_column(self, column: str, feature: Any) -> Column:
        assert (column, feature.decode) == ("image", False)
        return self


class ClassLabel:
    names = ("cat", "dog")


class ImageFeature:
    def __init__(self, decode: bool = True) -> None:
        self.decode = decode


ImageFeature.__name__ = "Image"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Column]:
    features = {"label": ClassLabel(), "image": ImageFeature()}
    splits = {"train": Column(8, 0, features), "test": Column(3, 20, features)}

    def load_dataset(name: str, cache_dir: str) -> dict[str, Column]:
        if name != "someone/pets":
            raise ConnectionError(f"cannot reach {name}")
        return splits

    package = types.ModuleType("datasets")
    package.__dict__.update(load_dataset=load_dataset, Image=ImageFeature)
    monkeypatch.setitem(sys.modules, "datasets", package)
    return splits


def test_hub_sets_keep_their_split_and_classes(hub: dict[str, Column], tmp_path: Path) -> None:
    data = opened("hf:someone/pets", tmp_path)
    assert (len(data.train), len(data.validation)) == (8, 3)
    assert data.train.label_names == {"class": ["cat", "dog"]}
    assert data.train.labels is not None
    numbers = [int(name.split()[-1]) % 2 for name in data.train.names]
    np.testing.assert_array_equal(data.train.labels["class"], numbers)


def test_hub_cells_without_a_picture_are_listed(hub: dict[str, Column], tmp_path: Path) -> None:
    hub["train"].cells[3] = {"bytes": None, "path": None}
    data = opened("hf:someone/pets", tmp_path, max_bad_fraction=0.2)
    assert [(bad.name, bad.reason) for bad in data.quarantined] == [("train 3", "an empty cell")]


def test_hub_errors_are_sentences(hub: dict[str, Column], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EnvironmentProblem, match="network"):
        opened("hf:someone/else", tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(EnvironmentProblem, match="uv sync --extra hf"):
        opened("hf:someone/pets", tmp_path)
