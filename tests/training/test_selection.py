"""The weights that a run starts from are validated too, and are the best where training only harms."""

import pytest

from tests.helpers.runs import Recorder, merged, request, train, write_images

RESIDUAL = {"family": "residual", "image_size": 16, "latents": 4, "base_channels": 4}
FROM_PCA = {"model": RESIDUAL, "training": {"epochs": 3, "early_stopping": {"patience": 2}}}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("start") / "images.npy")


def with_rate(rate):
    return {**FROM_PCA, "training": {**FROM_PCA["training"], "optimizer": {"kind": "adamw", "lr": rate}}}


@pytest.mark.parametrize(("pca_init", "rate", "harms"), [(True, 0.3, True), (False, 3e-3, False)])
def test_the_start_is_the_best_where_training_only_harms(pca_init, rate, harms, source, tmp_path):
    change = merged(with_rate(rate), {"model": {"pca_init": pca_init}})
    train(request(tmp_path / "run", source, change), [recorder := Recorder()])
    first, *later = recorder.validations
    assert (first.step, first.best) == (0, True)
    assert (max(event.values["psnr"] for event in later) < first.values["psnr"]) == harms
    assert (recorder.finished.best_step == 0) == harms


def test_the_start_is_no_measure_of_patience(source, tmp_path):
    train(request(tmp_path / "run", source, with_rate(0.3)), [recorder := Recorder()])
    selecting = [event for event in recorder.validations if event.selecting]
    assert selecting[0].step > 0
    assert selecting[0].num_bad_epochs == 0


def test_a_run_stopped_before_its_first_validation_is_saved_continues_the_same(source, tmp_path):
    class Stops(Recorder):
        def validated(self, event):
            raise KeyboardInterrupt

    train(request(tmp_path / "whole", source, with_rate(1e-3)), [whole := Recorder()])
    with pytest.raises(KeyboardInterrupt):
        train(request(tmp_path / "run", source, with_rate(1e-3)), [Stops()])
    train(request(tmp_path / "run", source, with_rate(1e-3)), [again := Recorder()])
    assert [event.values for event in again.validations] == [event.values for event in whole.validations]
    assert again.validations[0].step == 0
    rows = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "run")]
    assert rows[0] == rows[1]
