"""Where the images lie changes nothing but speed, and is said at the start."""

import json

import pytest
from lives import Recorder, outcome, request, write_images

from unified_vae.experiment.fit import fit


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "images.npy")


def test_a_run_with_its_images_in_memory_ends_in_the_same_bits_and_says_where_they_are(source, tmp_path):
    ends, words = [], []
    for held in ("auto", True):
        run = tmp_path / str(held)
        fit(request(run, source, {"training": {"epochs": 2}, "data": {"resident": held}}), [recorder := Recorder()])
        ends.append(outcome(run))
        words.append(dict(recorder.started[0].facts)["images"])
        shares = [row["data_share"] for row in map(json.loads, (run / "timing.jsonl").open()) if "data_share" in row]
        assert shares and all(0 <= share < 1 for share in shares)
    assert ends[0] == ends[1]
    assert "mapped from the disk" in words[0] and "in the memory of cpu" in words[1]
