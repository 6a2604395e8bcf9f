"""What is said before the first step: it is what the run then starts with, and collapse is refused or warned of."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from tests.helpers.runs import Recorder, request, train, write_images
from unified_vae.analysis import preflight
from unified_vae.analysis.preflight import Preflight
from unified_vae.config.data import DataConfig
from unified_vae.config.loss import Capacity, Geco, KLConfig
from unified_vae.config.model import ConvConfig
from unified_vae.config.run import RunConfig
from unified_vae.core.errors import ConfigError
from unified_vae.data.prepare import open_data

SIZE, LATENTS = 16, 4


def noisy_images(path, count=120):
    """Six directions of falling strength, and noise."""
    rng = np.random.default_rng(0)
    patterns = rng.normal(0, 1, (6, SIZE, SIZE, 3))
    strengths = rng.normal(0, 1, (count, 6)) * [20, 14, 10, 7, 5, 4]
    pictures = 128 + np.einsum("nk,khwc->nhwc", strengths, patterns) + rng.normal(0, 3, (count, SIZE, SIZE, 3))
    np.save(path, pictures.clip(0, 255).round().astype(np.uint8))
    return path


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prediction")
    source = noisy_images(folder / "images.npy")
    data = open_data(DataConfig(source=str(source), cache_dir=str(folder)), SIZE, None, lambda *_: None)
    config = RunConfig(model=ConvConfig(image_size=SIZE, latents=LATENTS))
    return preflight.run_preflight(config, data, torch.device("cpu"))[0], data


def test_the_pca_line_is_that_of_an_exact_pca(result):
    prediction, data = result
    train, validation = (
        np.asarray(split.images).reshape(len(split), -1) / 255 for split in (data.train, data.validation)
    )
    mean = train.mean(0)
    vectors = np.linalg.svd(train - mean, full_matrices=False)[2][:LATENTS]
    linear = ((validation - mean) @ vectors.T @ vectors + mean).clip(0, 1)
    expected = -10 * np.log10(((linear - validation) ** 2).mean())
    assert prediction.psnr_pca == pytest.approx(expected, abs=1e-3)


def test_the_prediction_is_where_the_run_begins(tmp_path):
    """A first step of size zero leaves the model at its start: its validation is the prediction."""
    source = noisy_images(tmp_path / "images.npy")
    change = {
        "loss": {"l1": {"weight": 0.0}, "kl": {"weight": 2.0, "schedule": {"kind": "constant"}}},
        "training": {"max_steps": 1, "optimizer": {"kind": "sgd", "lr": 1e-12, "momentum": 0.0}},
        "data": {"augment": {"horizontal_flip": False}},
    }
    seen = Recorder()
    train(request(tmp_path / "run", source, change), [seen])
    predicted = json.loads((tmp_path / "run" / "preflight.json").read_text())["predicted"]
    values = seen.validations[0].values
    assert values["psnr"] == pytest.approx(predicted["psnr"], abs=0.05)
    assert values["rate.nats"] == pytest.approx(predicted["rate"], rel=0.1)
    assert values["active_units"] == predicted["active_units"] == LATENTS
    assert values["psnr"] > values["psnr.mean_image"] + 3


def test_a_run_on_few_images_starts_below_8_bits(tmp_path):
    """Alone, the PCA of these 50 images starts at over 900 bits: it knows them and no others."""
    rng = np.random.default_rng(0)
    falls = (np.hypot(np.fft.fftfreq(32)[:, None], np.fft.rfftfreq(32)) * 32 + 1) ** -1.5
    waves = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(56, 32, 32))) * falls, s=(32, 32))
    pictures = 128 + 150 * waves[..., None] + rng.normal(0, 8, (56, 32, 32, 3))
    np.save(tmp_path / "images.npy", pictures.clip(0, 255).round().astype(np.uint8))
    change = {
        "model": {"image_size": 32, "latents": 64},
        "loss": {"l1": {"weight": 0.0}, "kl": {"schedule": {"kind": "constant"}}},
        "training": {"max_steps": 1, "optimizer": {"kind": "sgd", "lr": 1e-12, "momentum": 0.0}},
        "data": {"augment": {"horizontal_flip": False}},
    }
    seen = Recorder()
    train(request(tmp_path / "run", tmp_path / "images.npy", change), [seen])
    prediction = Preflight.from_json(json.loads((tmp_path / "run" / "preflight.json").read_text()))
    assert len(prediction.covariance_weights) == 4 and prediction.psnr_pca is not None
    assert seen.validations[0].values["bits_per_dim"] < 8
    words = dict(preflight.preflight_facts(prediction, 2.0))["PCA line"]
    assert f"64 components of {prediction.images} images, shifted and scaled copies of them" in words


def test_the_preflight_survives_its_file(result):
    prediction, _ = result
    content = json.loads(json.dumps(prediction.to_json(2.0)))
    assert Preflight.from_json(content) == prediction
    del content["covariance_weights"]  # as earlier versions wrote it
    assert Preflight.from_json(content) == prediction


def test_collapse_is_warned_of_with_a_beta_that_avoids_it(result):
    prediction, _ = result
    assert preflight.check_collapse_risk(prediction, 2.0, strict=True) is None
    warning = preflight.check_collapse_risk(prediction, 1e5, strict=False)
    assert "posterior collapse is predicted" in warning
    assert " or less with nats, or" in preflight.check_collapse_risk(prediction, 1e5, False, " with nats")
    largest = prediction.largest_beta()
    assert prediction.linear(largest).active_units >= LATENTS / 2 > prediction.linear(largest * 1.01).active_units
    with pytest.raises(ConfigError, match="preflight=strict"):
        preflight.check_collapse_risk(prediction, 1e5, strict=True)


def test_a_strict_run_ends_before_its_first_step(tmp_path):
    source = write_images(tmp_path / "images.npy")
    seen = Recorder()
    change = {"preflight": "strict", "loss": {"kl": {"weight": 1e6}}}
    with pytest.raises(ConfigError, match="0 of 4 units"):
        train(request(tmp_path / "run", source, change), [seen])
    assert not seen.logged
    train(request(tmp_path / "warned", source, {**change, "preflight": "warn", "training": {"max_steps": 1}}), [seen])
    assert any("posterior collapse is predicted" in notice for notice in seen.notices)


def test_more_latents_are_advised_where_they_are_worth_it(result):
    prediction, _ = result
    assert "(--set model.latents=" in preflight.latents_advice(prediction, 2.0)
    assert "are enough at this beta" in preflight.latents_advice(prediction, 300.0)


def test_images_that_do_not_differ_are_said_to_be_so(result):
    prediction, _ = result
    flat = dataclasses.replace(prediction, eigenvalues=(0.0,) * len(prediction.eigenvalues), rest=0.0)
    warning = preflight.check_collapse_risk(flat, 2.0, strict=False)
    assert "do not differ" in warning and "--beta" not in warning
    with pytest.raises(ConfigError, match="do not differ"):
        preflight.check_collapse_risk(flat, 2.0, strict=True)


def test_predicted_beta_of_geco_and_of_a_capacity(result):
    prediction, _ = result
    geco = KLConfig(weight=2.0, constraint=Geco(psnr=20.0))
    assert (prediction.effective_beta(geco, 14.0), prediction.effective_beta(geco, None)) == (14.0, 2.0)
    assert prediction.effective_beta(KLConfig(weight=3.0), 14.0) == 3.0
    firm = KLConfig(weight=100.0, constraint=Capacity(capacity=prediction.linear(5.0).rate))
    assert prediction.effective_beta(firm, 100.0) == pytest.approx(5.0, rel=1e-3)
