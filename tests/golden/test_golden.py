"""The golden runs give the stored figures; those that are quick in the usual run, all with -m slow.

figures.json is written by `python -m tests.golden.make_figures`.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.golden.compare import HERE, TREE, differences, finish, start

STORED = json.loads((HERE / "figures.json").read_text(encoding="utf-8"))
QUICK = [name for name, entry in STORED.items() if entry["quick"]]
REST = [name for name in STORED if name not in QUICK]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the golden runs are forks of one process")


def results_of(names: list[str], folder: Path) -> dict[str, Any]:
    return dict(finish(start(TREE, folder, names), folder)["cases"])


def check(name: str, result: dict[str, Any]) -> None:
    assert "failed" not in result, result["failed"]
    expected = STORED[name]["figures"]
    assert result["figures"].keys() == expected.keys()
    moved = {
        figure: (value, result["figures"][figure])
        for figure, value in expected.items()
        if result["figures"][figure] != pytest.approx(value, rel=STORED[name]["tolerance"])
    }
    assert not moved, "figures that were and are: see tests/golden/make_figures.py"


@pytest.fixture(scope="module")
def quick_results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return results_of(QUICK, tmp_path_factory.mktemp("quick"))


@pytest.fixture(scope="module")
def other_results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return results_of(REST, tmp_path_factory.mktemp("rest"))


@pytest.mark.parametrize("name", QUICK)
def test_quick_golden_run_gives_the_stored_figures(name: str, quick_results: dict[str, Any]) -> None:
    check(name, quick_results[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", REST)
def test_golden_run_gives_the_stored_figures(name: str, other_results: dict[str, Any]) -> None:
    check(name, other_results[name])


def test_a_changed_weight_metric_or_picture_is_named() -> None:
    before: dict[str, Any] = {
        "tensors": {"run/model": ["float32[2] aa", "float32[3] bb"]},
        "pictures": {"run/samples": ["uint8[8, 8, 3] cc"]},
        "numbers": {"run": [{"split": "train", "step": 3, "loss.total": 0.5, "rate.nats": 2.0}]},
    }
    assert differences(before, copy.deepcopy(before)) == []
    renamed = copy.deepcopy(before)
    renamed["numbers"]["run"][0]["kl"] = renamed["numbers"]["run"][0].pop("rate.nats")
    assert differences(before, renamed) == []
    renamed["tensors"]["run/model"][1] = "float32[3] dd"
    renamed["pictures"]["run/samples"].clear()
    renamed["numbers"]["run"][0]["kl"] = 2.5
    weights, pictures, metrics = differences(before, renamed)
    assert "run/model" in weights and "float32[3]" in weights
    assert "run/samples" in pictures
    assert "step 3" in metrics and "2.5" in metrics
