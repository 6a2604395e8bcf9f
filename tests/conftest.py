"""Fixtures of all tests."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest

# The tests run in as many processes as there are cores, so each computes with one thread.
os.environ["OMP_NUM_THREADS"] = "1"

# No test downloads anything, or finds what its user has downloaded.
os.environ["UNIFIED_VAE_OFFLINE"] = "1"
os.environ["TORCH_HOME"] = str(Path(__file__).parent / "no-pretrained-weights")

LONGEST = ("faults", "golden", "pipeline", "export", "training")
"""Folders of tests whose files take longest."""

_BESIDE_THE_REPOSITORY = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """Path of a real test archive by its name, e.g. real_data("faces128"); skips where it is absent."""

    def find(name: str) -> Path:
        folder = Path(os.environ.get("UNIFIED_VAE_TEST_DATA", _BESIDE_THE_REPOSITORY))
        path = folder / f"{name}.zip"
        if not path.is_file():
            pytest.skip(f"no {name}.zip in {folder}; set UNIFIED_VAE_TEST_DATA to the folder of test images")
        return path

    return find


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small array file of images to train on."""
    from tests.helpers.runs import write_images  # loads torch: seconds

    return write_images(tmp_path_factory.mktemp("data") / "images.npy")


def pytest_collection_finish() -> None:
    """Leave modules and tests out of garbage collections, which many runs start, and which take long with them."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # else libraries complain of leaks


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the slow and long tests out unless -m says something about them."""
    if not config.getoption("markexpr"):
        slow = [item for item in items if item.get_closest_marker("slow") or item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=slow)
        left_out = set(slow)
        items[:] = [item for item in items if item not in left_out]
    items.sort(key=lambda item: item.path.parent.name not in LONGEST)  # else one process ends with them, alone
