"""`unified-vae compare`: tables, marks and pictures of several tiny runs, and what cannot be compared."""

import json
import shutil

import numpy as np
import pytest
import torch
from lives import Recorder, request, write_images
from PIL import Image

from unified_vae.cli.door import enter
from unified_vae.cli.main import app
from unified_vae.core.errors import ConfigError
from unified_vae.core.events import Observer
from unified_vae.core.posterior import DiagonalGaussian
from unified_vae.experiment.evaluation.compare import SIZES_DIFFER, compare, rows_of
from unified_vae.experiment.evaluation.entrants import labels_of
from unified_vae.experiment.evaluation.figure import Figure
from unified_vae.experiment.evaluation.request import CompareRequest, Group, Settings
from unified_vae.metrics.bootstrap import Interval
from unified_vae.models.density.gaussian import fit_gaussian
from unified_vae.models.pretrained import save_density
from unified_vae.pipeline.fit import fit

QUICK = Settings(samples=8, draws=2, device="cpu", skip=frozenset({Group.FACTORS, Group.LIKELIHOOD}))
SHORT = {"training": {"epochs": 1}, "density": {"fit": "normal"}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """a and b of the same images, the second with one latent; c of other images; d of the same at another size."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("compared")
    images, others = write_images(folder / "images.npy", 60), write_images(folder / "others.npy", 40, seed=4)
    for name, source, model in (
        ("a", images, {}),
        ("b", images, {"latents": 1}),
        ("c", others, {}),
        ("d", images, {"image_size": 32}),
    ):
        fit(request(folder / name, source, {**SHORT, "model": model}), [Recorder()])
    return folder


def test_two_runs_on_the_same_images(runs, tmp_path, capsys):
    words = ["compare", str(runs / "a"), str(runs / "b"), "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert enter(app, "unified-vae", [*words, "--samples", "8", "--draws", "2"]) == 0
    text = capsys.readouterr().out
    for part in (
        "RECONSTRUCTION",
        "PSNR, mean over images",
        " *",
        "* best",
        "not available: LPIPS",
        "sheet: ",
        "plot: ",
    ):
        assert part in text
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [model["label"] for model in content["models"]] == ["a", "b"]
    assert content["marks"]["psnr.pooled"] == {"a": "best", "b": ""}
    assert len({model["images"]["pixels_sha256"] for model in content["models"]}) == 1
    with (
        Image.open(tmp_path / "out" / "comparison.png") as sheet,
        Image.open(tmp_path / "out" / "comparison-curves.png") as plot,
    ):
        assert plot.size == (1200, 500)
        assert sheet.height > 5 * 64 and sheet.width >= 3 * 64  # originals, two rows a run


def test_the_sheet_shows_the_same_images_of_all(runs, tmp_path):
    """Its first row is the originals, whichever run comes first."""
    rows = []
    for order in (("a", "b"), ("b", "a")):
        found = compare(
            CompareRequest([runs / name for name in order], output=tmp_path / order[0], settings=QUICK), Observer()
        )
        with Image.open(found.sheet) as sheet:
            rows.append(np.asarray(sheet)[: 18 + 64])
    assert np.array_equal(*rows)


def test_other_images_are_refused_unless_common_ones_are_named(runs, tmp_path):
    pair = [runs / "a", runs / "c"]
    with pytest.raises(ConfigError, match=r"validate on different images.*--data"):
        compare(CompareRequest(pair, output=tmp_path, settings=QUICK), Observer())
    recorder = Recorder()
    common = write_images(runs / "common.npy", 12, seed=7)
    found = compare(CompareRequest(pair, data=str(common), output=tmp_path, settings=QUICK), recorder)
    assert "all images of 12 images" in found.images and not recorder.notices
    compare(CompareRequest(pair, data=str(runs / "others.npy"), output=tmp_path, settings=QUICK), recorder)
    assert ["c at step" in line and line.endswith(" of these 40 images") for line in recorder.notices] == [True]


def test_a_row_of_few_images_does_not_cut_the_others(runs, tmp_path):
    """Three images, and eight new pictures below them."""
    common = write_images(tmp_path / "few.npy", 3, seed=7)
    pair = [runs / "a", runs / "b"]
    found = compare(CompareRequest(pair, data=str(common), output=tmp_path, settings=QUICK), Observer())
    with Image.open(found.sheet) as picture:
        last = np.asarray(picture)[-60:, -60:]
        assert picture.width >= 8 * 64 and last.std() > 0


def test_other_sizes_are_measured_at_their_own_and_nothing_is_best(runs, tmp_path):
    found = compare(CompareRequest([runs / "a", runs / "d"], output=tmp_path, settings=QUICK), Observer())
    assert found.notes == [SIZES_DIFFER] and not any(mark for row in found.rows for mark in row.marks)
    seen = next(row for row in found.rows if row.first.name == "psnr.pooled").figures
    assert [figure.resolution for figure in seen] == ["16 px", "32 px"]


def test_a_run_and_its_own_model_are_level_in_all(runs, tmp_path):
    found = compare(CompareRequest([runs / "a", runs / "a" / "model"], output=tmp_path, settings=QUICK), Observer())
    assert found.labels == ["a", "model"]
    assert all(set(row.marks) <= {"best", ""} for row in found.rows)
    assert next(row for row in found.rows if row.first.name == "ssim").marks == ["best", "best"]


def figure(values, better="higher"):
    return Figure("x", "x", Group.RECONSTRUCTION, better=better).averaged(np.array(values), 0)


def test_what_one_model_lacks_has_its_reason_in_the_table_and_the_report(runs, tmp_path, capsys):
    shutil.copytree(runs / "a" / "model", tmp_path / "with")
    save_density(tmp_path / "with", fit_gaussian(DiagonalGaussian(torch.randn(60, 4), torch.zeros(60, 4))), {})
    words = ["compare", str(tmp_path / "with"), str(runs / "b" / "model"), "--output", str(tmp_path / "out")]
    words += ["--data", str(runs / "images.npy"), "--device", "cpu", "--samples", "8", "--draws", "2"]
    assert enter(app, "unified-vae", [*words, "--skip", "likelihood"]) == 0
    reason = "model draws new pictures from N(0, I) alone: no other latent density was fitted"
    assert reason in " ".join(capsys.readouterr().out.split())
    models = json.loads((tmp_path / "out" / "comparison.json").read_text())["models"]
    names = [[figure["name"] for figure in model["figures"]] for model in models]
    assert set(names[0]) == set(names[1]) and len(names[1]) == len(set(names[1]))
    for model in models:
        assert all(figure["value"] is not None or figure["missing"] for figure in model["figures"])
    (lacking,) = [figure for figure in models[1]["figures"] if figure["name"] == "swd.fitted"]
    assert lacking["value"] is None and reason in lacking["missing"]


def test_differences_are_judged_image_by_image():
    """Two models whose intervals overlap widely are told apart where one is better on every image."""
    rng = np.random.default_rng(0)
    base = rng.normal(0, 1, 200)
    better, level = base + 0.1 + 0.01 * rng.normal(size=200), base + 0.1 + rng.normal(size=200)
    assert rows_of([[figure(base)], [figure(better)]], 0)[0].marks == ["", "best"]
    assert sorted(rows_of([[figure(base)], [figure(level)]], 0)[0].marks) == ["best", "level"]
    assert rows_of([[figure(base, "lower")], [figure(better, "lower")]], 0)[0].marks == ["best", ""]
    assert rows_of([[figure(base + 1, "near 1")], [figure(base + 3, "near 1")]], 0)[0].marks == ["best", ""]


def test_distances_of_sets_are_judged_by_their_intervals_and_what_is_missing_is_unmarked():
    def distance(value):
        return Figure("fid", "FID", Group.SAMPLES, better="lower").measured(value, Interval(value - 1, value + 1), 10)

    assert rows_of([[distance(3)], [distance(4.5)], [distance(6)]], 0)[0].marks == ["best", "level", ""]
    absent = Figure("fid", "FID", Group.SAMPLES, better="lower").unavailable("no weights")
    assert rows_of([[distance(3)], [absent], [distance(6)]], 0)[0].marks == ["best", "", ""]
    assert rows_of([[distance(3)], []], 0)[0].marks == ["", ""]


def test_labels_tell_the_models_apart(tmp_path):
    assert labels_of([tmp_path / "x" / "model", tmp_path / "y" / "model"]) == ["x/model", "y/model"]
    assert labels_of([tmp_path / "x", tmp_path / "x"])[0] != labels_of([tmp_path / "x", tmp_path / "x"])[1]


def test_mistakes_are_told_in_a_sentence(runs, tmp_path, capsys):
    assert enter(app, "unified-vae", ["compare", str(runs / "a")]) == 2
    assert "two models or more" in capsys.readouterr().err
    assert enter(app, "unified-vae", ["compare", str(runs / "a"), str(tmp_path)]) == 2
    assert "is no run" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert (
        enter(app, "unified-vae", ["compare", str(runs / "a"), str(runs / "b"), "--output", str(tmp_path / "file")])
        == 3
    )
    assert "--output" in capsys.readouterr().err
