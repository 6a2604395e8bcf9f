"""`unified-vae evaluate` on tiny runs and their models: each metric has a value or a reason; several side by side."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.runs import Recorder, request, train, write_images
from unified_vae.cli.app import main
from unified_vae.core import retention
from unified_vae.core.distributions import DiagonalGaussian
from unified_vae.core.errors import ConfigError, DataError, EnvironmentProblem
from unified_vae.core.events import Observer
from unified_vae.evaluation import Group
from unified_vae.evaluation.evaluate import SIZES_DIFFER, _read_weights, draw_sheet, evaluate, unique_labels
from unified_vae.inference import load
from unified_vae.models.density import fit_gaussian
from unified_vae.models.pretrained import save_density

SHORT = {"training": {"epochs": 1}, "density": {"fit": "normal"}}


def measure(*targets, observer=None, **options):
    quick = {"samples": 12, "draws": 3, "device": "cpu"}
    return evaluate(targets, **{**quick, **options}, observer=observer or Observer())


def only(*groups):
    return [group for group in Group if group not in groups]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """a; b of the same images with one latent; c of other images; d of the same images at another size."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("evaluated")
    images, others = write_images(folder / "images.npy", 80), write_images(folder / "others.npy", 40, seed=4)
    train(request(folder / "a", images, {"training": {"epochs": 3}, "model": {"pca_init": False}}), [Recorder()])
    few = {"latents": 1, "pca_init": False}
    for name, source, model in (("b", images, few), ("c", others, {}), ("d", images, {"image_size": 32})):
        train(request(folder / name, source, {**SHORT, "model": model}), [Recorder()])
    return folder


@pytest.fixture(scope="module")
def run(runs):
    return runs / "a"


@pytest.fixture(scope="module")
def both(run):
    """The evaluation of the run's best weights, averaged and raw, and the report's content."""
    evaluation = measure(run)
    return evaluation, json.loads(evaluation.files["report"].read_text())


def rows(content, weights="ema"):
    return {row["name"]: row for row in content["weights"][weights]}


# --- one model -------------------------------------------------------------------------------------------


def test_every_metric_has_a_value_with_its_source_or_a_reason(both):
    evaluation, content = both
    assert evaluation.files["report"].name == "evaluation.json" and list(content["weights"]) == ["ema", "raw"]
    for weights in ("ema", "raw"):
        table = rows(content, weights)
        expected = {"psnr.pooled", "psnr.image_mean", "ssim", "ms_ssim", "lpips.alex", "lpips.vgg", "sharpness", "rfid"}
        expected |= {"swd.reconstructions", "rate", "active_units", "posterior.gap", "elbo", "iwae.3"}
        expected |= {f"{name}.normal" for name in ("fid", "kid", "precision", "recall", "swd")}
        expected.add("mig")
        assert expected <= set(table)
        for row in table.values():
            assert (row["value"] is None) == bool(row["missing"])
            if row["value"] is None:
                continue
            assert row["evaluator"] and row["images"] > 0
            if row["interval_95"]:
                assert row["interval_95"][0] <= row["value"] <= row["interval_95"][1], row
    assert "curl" in rows(content)["fid.normal"]["missing"] and "6726825d" in rows(content)["fid.normal"]["missing"]
    assert "swd.fitted" in rows(content) and "swd.fitted" not in rows(content, "raw")
    assert content["images"]["count"] == rows(content)["ssim"]["images"]
    assert len(content["images"]["pixels_sha256"]) == 64


def test_values_are_those_of_the_run_s_own_validation(run, tmp_path):
    """The run's log has them of the last step, of averaged weights, measured in training's own pass."""
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    skip = only(Group.RECONSTRUCTION, Group.LATENTS)
    evaluation = measure(run, checkpoint="last", weights="ema", report=tmp_path / "last.json", skip=skip)
    table = {result.name: result.value for result in evaluation.results["ema"]}
    assert last["split"] == "validation"
    pairs = {"psnr.pooled": "psnr", "rate": "rate.nats", "sharpness": "sharpness", "posterior.gap": "posterior.gap"}
    for name, logged in pairs.items():
        assert table[name] == pytest.approx(last[logged], rel=1e-3), name
    assert table["active_units"] == last["active_units"]


def test_the_same_command_repeats_and_another_seed_does_not(run, both, tmp_path):
    def again(**options):
        evaluation = measure(run, weights="ema", report=tmp_path / "again.json", **options)
        return {result.name: (result.value, result.interval) for result in evaluation.results["ema"]}

    first = {result.name: (result.value, result.interval) for result in both[0].results["ema"]}
    assert again() == first
    other = again(seed=1, skip=only(Group.LIKELIHOOD))
    assert all(first[name] != entry for name, entry in other.items())


def test_an_exported_model_is_measured_as_the_weights_it_is_of(runs, run, both, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(run / "model", model)
    with pytest.raises(ConfigError, match="--data"):
        measure(model)
    inside = measure(run / "model", report=tmp_path / "inside.json", skip=[Group.SAMPLES])
    assert list(inside.results) == ["ema"] and "averaged weights (EMA) alone" in inside.notes[0]
    expected = {result.name: result.value for result in both[0].results["ema"]}
    for result in inside.results["ema"]:
        assert result.value == (expected[result.name] and pytest.approx(expected[result.name]))
    for weights in ("raw", "both"):
        with pytest.raises(ConfigError, match="averaged weights alone"):
            measure(run / "model", weights=weights)
    skip = only(Group.RECONSTRUCTION)
    foreign = measure(model, data=str(write_images(tmp_path / "others.npy", 20, seed=9)), skip=skip)
    assert foreign.files["report"] == model / "evaluation.json" and "all images of 20 images" in foreign.images
    assert {result.images for result in foreign.results["ema"] if result.name == "ssim"} == {20}


def test_both_weights_are_of_one_step_although_the_run_goes_on(run, monkeypatch):
    """A better validation comes between the two readings."""
    steps = retention.saved_steps(run / "checkpoints")
    states = iter([steps[0]])
    assert len(steps) > 1

    progress = load.Progress
    monkeypatch.setattr(load, "Progress", lambda step, _, over: progress(step, next(states, steps[-1]), over))
    models, _ = _read_weights(run, None, None, None, Observer())
    assert {name: (each.step, each.weights) for name, each in models.items()} == {
        "ema": (steps[0], "ema"),
        "raw": (steps[0], "raw"),
    }


def test_images_that_were_trained_on_are_named(run, tmp_path):
    def notices_of(source):
        recorder = Recorder()
        evaluation = measure(
            run, data=str(source), weights="ema", report=tmp_path / "x.json", skip=only("latents"), observer=recorder
        )  # fmt: skip
        return evaluation.images, [line for line in recorder.notices if "trained on" in line]

    folder = run.parent
    images, notices = notices_of(f"{folder}/../{folder.name}/images.npy")
    assert "the run's validation images" in images and not notices
    np.save(tmp_path / "copy.npy", np.load(folder / "images.npy")[::-1])
    images, notices = notices_of(tmp_path / "copy.npy")
    assert "all images of 80" in images and "was trained on 64 of these 80 images" in notices[0]
    np.save(tmp_path / "others.npy", np.random.default_rng(8).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8))
    assert notices_of(tmp_path / "others.npy")[1] == []


def test_labels_of_two_factors_bring_disentanglement(run, tmp_path):
    """The built-in set has labels; the tiny model sees a few of its faces."""
    options = {"max_images": 60, "skip": only(Group.FACTORS), "report": tmp_path / "f.json"}
    (result,) = measure(run, data="builtin", weights="ema", **options).results["ema"]
    assert result.name == "mig" and 0 <= result.value <= 1 and result.images == 60 and result.interval


def test_inception_s_weights_are_read_without_code(run, tmp_path):
    """Random weights of the real network: the path from a file to FID, KID, precision and recall."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.manual_seed(0)
    state = {}

    class Keeping(FeatureExtractorInceptionV3):
        def load_state_dict(self, *args, **kwargs):
            state.update(self.state_dict())

    torch.save({}, tmp_path / "empty.pth")
    Keeping("inception", ["2048"], feature_extractor_weights_path=str(tmp_path / "empty.pth"))
    file = tmp_path / "inception.pth"
    torch.save(state, file)
    options = {"samples": 5, "max_images": 5, "inception": file, "report": tmp_path / "i.json"}
    options["skip"] = [Group.LIKELIHOOD, Group.LATENTS]
    table = {result.name: result for result in measure(run, weights="ema", **options).results["ema"]}
    for name in ("rfid", "fid.normal", "kid.normal", "precision.normal", "recall.normal", "fid.fitted"):
        assert table[name].value is not None and table[name].interval is not None, table[name]
    torch.save(state | {"fc.bias": torch.zeros(3)}, file)
    with pytest.raises(EnvironmentProblem, match="not those of Inception"):
        measure(run, **options)


# --- several models --------------------------------------------------------------------------------------


def test_two_runs_on_the_same_images(runs, tmp_path, capsys):
    words = ["evaluate", str(runs / "a"), str(runs / "b"), "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert main("unified-vae", [*words, "--samples", "8", "--draws", "2"]) == 0
    text = capsys.readouterr().out
    for part in ("RECONSTRUCTION", "PSNR, mean over images", " + better", "not available: LPIPS", "sheet: ", "plot: "):
        assert part in text
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [model["label"] for model in content["models"]] == ["a", "b"] and content["reference"] == "a"
    figures = [{row["name"]: row["value"] for row in model["figures"]} for model in content["models"]]
    difference = content["differences"]["b"]["psnr.pooled"]
    assert difference["value"] == pytest.approx(figures[1]["psnr.pooled"] - figures[0]["psnr.pooled"])
    assert difference["interval"][0] < difference["value"] < difference["interval"][1] < 0
    assert difference["verdict"] == "worse"
    assert len({model["images"]["pixels_sha256"] for model in content["models"]}) == 1
    with (
        Image.open(tmp_path / "out" / "comparison.png") as sheet,
        Image.open(tmp_path / "out" / "comparison-curves.png") as plot,
    ):
        assert plot.size == (1200, 500)
        assert sheet.height > 5 * 64 and sheet.width >= 3 * 64  # originals, two rows a run


def test_the_sheet_shows_the_same_images_of_all(tmp_path):
    """Its first row is the originals, whichever model comes first; three images do not cut eight samples."""
    random = np.random.default_rng(0)
    originals = random.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    views = {
        name: (originals, originals // 2, random.integers(9, 256, (8, 16, 16, 3), dtype=np.uint8)) for name in "ab"
    }
    heads = []
    for order in ("ab", "ba"):
        draw_sheet(tmp_path / "sheet.png", {name: views[name] for name in order})
        with Image.open(tmp_path / "sheet.png") as sheet:
            pixels = np.asarray(sheet)
        heads.append(pixels[: 18 + 64])
        assert sheet.width >= 8 * 64 and pixels[-60:, -60:].std() > 0
    assert np.array_equal(*heads)


def test_other_images_are_refused_unless_common_ones_are_named(runs, tmp_path):
    options = {"output": tmp_path, "skip": only(Group.LATENTS)}
    with pytest.raises(ConfigError, match=r"validate on different images.*--data"):
        measure(runs / "a", runs / "c", **options)
    recorder = Recorder()
    common = str(write_images(runs / "common.npy", 12, seed=7))
    evaluation = measure(runs / "a", runs / "c", data=common, observer=recorder, **options)
    assert "all images of 12 images" in evaluation.images and not recorder.notices
    measure(runs / "a", runs / "c", data=str(runs / "others.npy"), observer=recorder, **options)
    assert ["c at step" in line and line.endswith(" of these 40 images") for line in recorder.notices] == [True]


def test_other_image_sizes_are_compared_without_differences(runs, tmp_path):
    evaluation = measure(runs / "a", runs / "d", output=tmp_path, skip=only(Group.RECONSTRUCTION))
    assert evaluation.notes == [SIZES_DIFFER] and not evaluation.differences
    for label, size in (("a", "16 px"), ("d", "32 px")):
        assert next(each for each in evaluation.results[label] if each.name == "psnr.pooled").resolution == size


def test_a_run_and_its_own_model_do_not_differ(runs, tmp_path):
    skip = only(Group.RECONSTRUCTION, Group.LATENTS)
    evaluation = measure(runs / "a", runs / "a" / "model", output=tmp_path, skip=skip)
    assert list(evaluation.results) == ["a", "model"]
    differences = evaluation.differences["model"]
    assert differences["ssim"].value == 0 and differences["ssim"].interval == (0, 0)
    assert all(difference.verdict == "" for difference in differences.values())


def test_what_one_model_lacks_has_its_reason(runs, tmp_path, capsys):
    shutil.copytree(runs / "a" / "model", tmp_path / "with")
    save_density(tmp_path / "with", fit_gaussian(DiagonalGaussian(torch.randn(60, 4), torch.zeros(60, 4))), {})
    words = ["evaluate", str(tmp_path / "with"), str(runs / "b" / "model"), "--output", str(tmp_path / "out")]
    words += ["--data", str(runs / "images.npy"), "--device", "cpu", "--samples", "8", "--max-images", "12"]
    assert main("unified-vae", [*words, *(word for group in only("samples") for word in ("--skip", group))]) == 0
    reason = "model draws new images from N(0, I) alone: no other latent density was fitted"
    assert reason in " ".join(capsys.readouterr().out.split())
    models = json.loads((tmp_path / "out" / "comparison.json").read_text())["models"]
    names = [[figure["name"] for figure in model["figures"]] for model in models]
    assert set(names[0]) == set(names[1]) and len(names[1]) == len(set(names[1]))
    for model in models:
        assert all(figure["value"] is not None or figure["missing"] for figure in model["figures"])
    (lacking,) = [figure for figure in models[1]["figures"] if figure["name"] == "swd.fitted"]
    assert lacking["value"] is None and reason in lacking["missing"]


def test_labels_tell_the_models_apart(tmp_path):
    assert unique_labels([tmp_path / "x" / "model", tmp_path / "y" / "model"]) == ["x/model", "y/model"]
    assert len(set(unique_labels([tmp_path / "x", tmp_path / "x"]))) == 2


# --- mistakes --------------------------------------------------------------------------------------------


def test_mistakes_get_one_sentence(run, tmp_path, capsys):
    def error_of(*words, verb="evaluate"):
        code = main("unified-vae", [verb, *map(str, words), "--device", "cpu"])
        err = capsys.readouterr().err
        assert err.startswith("error: ") and "Traceback" not in err
        return code, err

    (tmp_path / "file").write_text("")
    (tmp_path / "weights.pth").write_bytes(b"no weights")
    other = run.parent / "b"
    for code, part, words in (
        (2, "is not there", [tmp_path / "none"]),
        (2, "has best, last and the steps", [run, "--checkpoint", "77"]),
        (2, "nowhere", [run, "--data", tmp_path / "nowhere"]),
        (3, "--json", [run, "--json", tmp_path / "file" / "report.json"]),
        (3, "--inception", [run, "--inception", tmp_path / "weights.pth"]),
        (2, "--samples", [run, "--samples", "1"]),
        (2, "several models", [run, "--output", tmp_path]),
        (2, "is no run", [run, tmp_path]),
        (3, "--output", [run, other, "--output", tmp_path / "file"]),
        (2, "of one model", [run, other, "--weights", "both"]),
    ):
        assert error_of(*words)[0] == code and part in error_of(*words)[1]
    code, err = error_of(run, other, "--samples", "8", verb="compare")
    assert code == 2 and f"uv run unified-vae evaluate {run} {other} --samples 8" in err


def test_images_of_other_channels_are_refused(run, tmp_path):
    gray = np.zeros((12, 16, 16, 1), np.uint8) + np.arange(12, dtype=np.uint8)[:, None, None, None]
    np.save(tmp_path / "gray.npy", gray)
    with pytest.raises((DataError, ConfigError)):
        measure(run, data=str(tmp_path))
