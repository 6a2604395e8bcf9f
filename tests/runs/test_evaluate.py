"""`unified-vae evaluate` on a tiny run, its checkpoints and its model: each metric has a value, or a reason."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from lives import Recorder, request, write_images

from unified_vae.cli.door import enter
from unified_vae.cli.main import app
from unified_vae.core.errors import ConfigError, DataError, EnvironmentProblem
from unified_vae.core.events import Observer
from unified_vae.experiment.evaluation.evaluate import _subjects, evaluate
from unified_vae.experiment.evaluation.request import EvaluateRequest, Group, Settings, Weights
from unified_vae.experiment.subject import subject as subject_module
from unified_vae.pipeline.fit import fit
from unified_vae.training import retention
from unified_vae.training.checkpointer import train_state

QUICK = Settings(samples=12, draws=3, device="cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("evaluated")
    change = {"training": {"epochs": 3}}
    fit(request(folder / "run", write_images(folder / "images.npy", 80), change), [Recorder()])
    return folder / "run"


@pytest.fixture(scope="module")
def both(run):
    """The evaluation of the run's best weights, averaged and raw, and the report's content."""
    found = evaluate(EvaluateRequest(run, settings=QUICK), Observer())
    return found, json.loads(found.file.read_text())


def rows(content, weights="ema"):
    return {row["name"]: row for row in content["weights"][weights]}


def test_every_metric_has_a_value_with_what_belongs_to_it_or_a_reason(both):
    found, content = both
    assert found.file.name == "evaluation.json" and list(content["weights"]) == ["ema", "raw"]
    for weights in ("ema", "raw"):
        table = rows(content, weights)
        expected = {"psnr.pooled", "psnr.image_mean", "ssim", "ms_ssim", "lpips.alex", "lpips.vgg", "sharpness", "rfid"}
        expected |= {"swd.reconstructions", "rate", "active_units", "posterior.gap", "elbo", "iwae.3"}
        expected |= {f"{name}.normal" for name in ("fid", "kid", "precision", "recall", "swd")}
        expected |= {"mig", "dci.disentanglement", "dci.completeness", "dci.informativeness"}
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
    assert (
        content["images"]["count"] == rows(content)["ssim"]["images"] and len(content["images"]["pixels_sha256"]) == 64
    )


def test_the_figures_are_those_of_the_run_s_own_validation(run, both):
    """The run's log has them of the last step, of averaged weights, measured in training's own pass."""
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    found = evaluate(
        EvaluateRequest(run, checkpoint="last", weights=Weights.EMA, file=run / "last.json", settings=QUICK), Observer()
    )
    table = {figure.name: figure.value for figure in found.figures[Weights.EMA]}
    assert last["split"] == "validation"
    pairs = {"psnr.pooled": "psnr", "rate": "rate.nats", "sharpness": "sharpness", "posterior.gap": "posterior.gap"}
    for name, logged in pairs.items():
        assert table[name] == pytest.approx(last[logged], rel=1e-3), name
    assert table["active_units"] == last["active_units"]


def test_the_same_command_gives_the_same_numbers_and_another_seed_others(run, both, tmp_path):
    def again(**change):
        settings = Settings(**{"samples": 12, "draws": 3, "device": "cpu", **change})
        where = EvaluateRequest(run, weights=Weights.EMA, file=tmp_path / "again.json", settings=settings)
        return [(figure.value, figure.interval) for figure in evaluate(where, Observer()).figures[Weights.EMA]]

    first = [(figure.value, figure.interval) for figure in both[0].figures[Weights.EMA]]
    assert again() == first
    assert again(seed=1) != first


def test_an_exported_model_is_measured_as_the_weights_it_was_made_of(run, both, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(run / "model", model)
    with pytest.raises(ConfigError, match="--data"):
        evaluate(EvaluateRequest(model, settings=QUICK), Observer())
    inside = evaluate(EvaluateRequest(run / "model", file=tmp_path / "inside.json", settings=QUICK), Observer())
    assert list(inside.figures) == [Weights.EMA] and "averaged weights (EMA) alone" in inside.notes[0]
    expected = {figure.name: figure.value for figure in both[0].figures[Weights.EMA]}
    found = {figure.name: figure.value for figure in inside.figures[Weights.EMA]}
    assert found.keys() == expected.keys()
    assert {name: value for name, value in found.items() if value} == pytest.approx(
        {name: value for name, value in expected.items() if value}
    )
    for asked in (Weights.RAW, Weights.BOTH):
        with pytest.raises(ConfigError, match="averaged weights alone"):
            evaluate(EvaluateRequest(run / "model", weights=asked, settings=QUICK), Observer())
    others = write_images(tmp_path / "others.npy", 20, seed=9)
    foreign = evaluate(EvaluateRequest(model, data=str(others), settings=QUICK), Observer())
    assert foreign.file == model / "evaluation.json" and "all images of 20 images" in foreign.images
    assert {figure.images for figure in foreign.figures[Weights.EMA] if figure.name == "ssim"} == {20}


def test_both_weights_are_of_one_step_although_the_run_goes_on(run, monkeypatch):
    """A better validation comes between the two readings."""
    steps = retention.saved_steps(run / "checkpoints")
    states = iter([steps[0]])
    assert len(steps) > 1

    def training(saved):
        return replace(train_state(saved), best_step=next(states, steps[-1]))

    monkeypatch.setattr(subject_module, "train_state", training)
    (_, first), (_, second) = _subjects(EvaluateRequest(run), Observer())[0]
    assert (first.step, second.step) == (steps[0], steps[0]) and (first.weights, second.weights) == ("ema", "raw")


def test_images_that_were_trained_on_are_told_however_they_are_named(run, tmp_path):
    settings = Settings(samples=4, device="cpu", skip=frozenset(set(Group) - {Group.LATENTS}))

    def heard(source):
        seen = Recorder()
        where = EvaluateRequest(run, data=str(source), weights=Weights.EMA, file=tmp_path / "x.json", settings=settings)
        return evaluate(where, seen).images, [line for line in seen.notices if "trained on" in line]

    folder = run.parent
    images, notes = heard(f"{folder}/../{folder.name}/images.npy")
    assert "the run's validation images" in images and not notes
    np.save(tmp_path / "copy.npy", np.load(folder / "images.npy")[::-1])
    images, notes = heard(tmp_path / "copy.npy")
    assert "all images of 80" in images and "was trained on 74 of these 80 images" in notes[0]
    np.save(tmp_path / "others.npy", np.random.default_rng(8).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8))
    assert heard(tmp_path / "others.npy")[1] == []


def test_labels_of_two_factors_bring_disentanglement(run, tmp_path):
    """The built-in set has labels; the tiny model sees a few of its faces."""
    settings = Settings(samples=4, max_images=60, draws=1, device="cpu", skip=frozenset(set(Group) - {Group.FACTORS}))
    where = EvaluateRequest(run, data="builtin", weights=Weights.EMA, file=tmp_path / "f.json", settings=settings)
    figures = evaluate(where, Observer()).figures[Weights.EMA]
    assert [figure.name for figure in figures][:2] == ["mig", "dci.disentanglement"] and len(figures) == 4
    assert all(0 <= figure.value <= 1 and figure.images == 60 for figure in figures)
    assert [figure.interval is None for figure in figures] == [False, True, True, False]


def test_mistakes_are_told_in_a_sentence(run, tmp_path, capsys):
    def said(*words):
        code = enter(app, "unified-vae", ["evaluate", *map(str, words), "--device", "cpu"])
        err = capsys.readouterr().err
        assert err.startswith("error: ") and "Traceback" not in err
        return code, err

    code, err = said(tmp_path / "none")
    assert code == 2 and "is not there" in err
    code, err = said(run, "--checkpoint", "77")
    assert code == 2 and "has best, last and the steps" in err
    grey = np.zeros((12, 16, 16, 1), np.uint8) + np.arange(12, dtype=np.uint8)[:, None, None, None]
    np.save(tmp_path / "grey.npy", grey)
    code, err = said(run, "--data", tmp_path / "nowhere")
    assert code == 2
    (tmp_path / "file").write_text("")
    code, err = said(run, "--json", tmp_path / "file" / "report.json")
    assert code == 3 and "--json" in err
    (tmp_path / "weights.pth").write_bytes(b"no weights")
    code, err = said(run, "--inception", tmp_path / "weights.pth")
    assert code == 3 and "--inception" in err
    code, err = said(run, "--samples", "1")
    assert code == 2


def test_inception_s_weights_are_read_without_code_and_give_the_distances(run, tmp_path):
    """Random weights of the real network: the path from a file to FID, KID, precision and recall."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.manual_seed(0)
    made = {}

    class Keeping(FeatureExtractorInceptionV3):
        def load_state_dict(self, state, *args, **kwargs):
            made.update(self.state_dict())

    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save({}, tmp_path / "empty.pth")
    Keeping("inception", ["2048"], feature_extractor_weights_path=str(tmp_path / "empty.pth"))
    file = tmp_path / "inception.pth"
    torch.save(made, file)
    settings = Settings(
        samples=5, max_images=5, device="cpu", inception=file, skip=frozenset({Group.LIKELIHOOD, Group.LATENTS})
    )
    found = evaluate(EvaluateRequest(run, weights=Weights.EMA, file=tmp_path / "i.json", settings=settings), Observer())
    table = {figure.name: figure for figure in found.figures[Weights.EMA]}
    for name in ("rfid", "fid.normal", "kid.normal", "precision.normal", "recall.normal", "fid.fitted"):
        assert table[name].value is not None and table[name].interval is not None, table[name]
    torch.save(made | {"fc.bias": torch.zeros(3)}, file)
    with pytest.raises(EnvironmentProblem, match="not those of Inception"):
        evaluate(EvaluateRequest(run, file=tmp_path / "i.json", settings=settings), Observer())


def test_images_of_other_channels_are_refused(run, tmp_path):
    with pytest.raises((DataError, ConfigError)):
        evaluate(EvaluateRequest(run, data=str(tmp_path), settings=QUICK), Observer())
