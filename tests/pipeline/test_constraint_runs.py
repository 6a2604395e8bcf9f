"""Runs whose KL is constrained: what they say, what they choose, and that they go on to the same bits."""

import json
import math
import os
import re
import signal
import sys

import pytest
import torch

from tests.helpers.faults import Poison, injected
from tests.helpers.runs import Recorder, outcome, request, train, write_images
from unified_vae.analysis.diagnosis import History
from unified_vae.config.loss import Geco, KLConfig
from unified_vae.pipeline.finalize import GECO_TOLERANCE, geco_warnings

GECO = {"loss": {"kl": {"constraint": {"kind": "geco", "psnr": 42.0, "speed": 0.1}}}}

MSE_ALONE = {"l1": {"weight": 0.0}, "kl": {"constraint": {"kind": "free_bits", "nats_per_unit": 50.0}}}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    torch.set_num_threads(1)
    return write_images(tmp_path_factory.mktemp("data") / "images.npy")


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """A run with GECO that nobody interrupts."""
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    recorder = Recorder()
    train(request(run_dir, source, GECO), [recorder])
    return run_dir, recorder


def rows(run_dir, split):
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


def fact(recorder, label):
    (started,) = recorder.started
    return dict(started.facts)[label]


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize("stop", [5, 13])
def test_geco_goes_on_to_the_same_bits(stop, source, whole, tmp_path):
    class StopAt(Recorder):
        def step_done(self, event):
            if event.step == stop:
                os.kill(os.getpid(), signal.SIGTERM)

    run_request = request(tmp_path / "run", source, GECO)
    assert train(run_request, [StopAt()]).step == stop
    again = Recorder()
    assert train(run_request, [again]).outcome == "finished"
    assert outcome(tmp_path / "run") == outcome(whole[0])
    (beta,) = [row for row in again.started[0].terms if row.name == "loss.kl"]
    assert beta.weight * beta.factor == pytest.approx(float(re.search(r"beta now ([\d.]+)", beta.note)[1]), rel=0.01)
    assert "geco: at least 42 dB at the least KL" in beta.note


def test_beta_is_logged_as_it_moves(whole):
    betas = [row["beta"] for row in rows(whole[0], "train")]
    assert len(set(betas[len(betas) // 2 :])) > 3, "the warm-up is over and beta still moves"


def test_with_geco_the_last_weights_are_the_best(source, whole, tmp_path):
    recorder = whole[1]
    assert [event.selecting for event in recorder.validations] == [False] * 6 + [True]
    assert recorder.finished.best_step == recorder.finished.step
    assert "those of the last step" in fact(recorder, "best weights")
    geco = {"kind": "geco", "psnr": 8.0, "speed": 0.3, "max_beta": 1e6}
    fast = {"ema_decay": 0.1, "optimizer": {"kind": "adamw", "lr": 2e-2}}
    vague = {"loss": {"kl": {"weight": 0.1, "schedule": {"kind": "constant"}, "constraint": geco}}}
    short, longer = Recorder(), Recorder()
    for epochs, recorder in ((1, short), (6, longer)):
        train(request(tmp_path / "run", source, {**vague, "training": {**fast, "epochs": epochs}}), [recorder])
    assert longer.finished.values["psnr"] < short.finished.values["psnr"] - 1, "GECO gives up what was not asked for"
    assert short.finished.best_step < longer.finished.best_step == longer.finished.step


def test_a_run_may_take_up_geco_on_its_way(source, tmp_path):
    train(request(tmp_path / "run", source, {"training": {"epochs": 2}}), [Recorder()])
    train(request(tmp_path / "run", source, {"training": {"epochs": 4}, **GECO}), [again := Recorder()])
    assert again.finished.outcome == "finished"
    assert any(difference.path == "loss.kl.constraint.kind" for difference in again.started[0].differences)


@pytest.mark.parametrize("rolled_back", [False, True])
def test_another_first_beta_does_not_move_that_of_geco(rolled_back, source, tmp_path):
    betas, schedule = [], {"lr_schedule": {"kind": "constant"}}
    faults = [Poison((13, 14, 15, 16, 17), above=2e-3)] if rolled_back else []
    for epochs, weight in ((2, 1.0), (3, 10.0)):
        change = {"loss": {"kl": {**GECO["loss"]["kl"], "weight": weight, "schedule": {"kind": "constant"}}}}
        recorder = Recorder()
        with injected(*faults):
            train(request(tmp_path / "run", source, {**change, "training": {"epochs": epochs, **schedule}}), [recorder])
        betas.append([row["beta"] for row in rows(tmp_path / "run", "train")])
    before, after = betas[0][-1], betas[1][len(betas[0])]
    assert 1 / 3 < after / before < 3, "10 times as much before"
    assert any("rolled back to step 12" in notice for notice in recorder.notices) == rolled_back


def test_a_target_that_geco_missed_is_reported_at_the_end(whole):
    run_dir, recorder = whole
    reached = -10 * math.log10(rows(run_dir, "train")[-1]["loss.mse"])
    assert abs(reached - 42) > GECO_TOLERANCE, "a few steps leave beta far from where it would settle"
    (message,) = [line for line in recorder.finished.advice if "GECO" in line]
    assert f"at {reached:.1f} dB, the target is 42" in message


def test_each_way_to_miss_a_target_has_its_own_advice():
    geco = KLConfig(constraint=Geco(psnr=20.0, min_beta=0.1, max_beta=10.0))
    ways = [(15.0, 0.1000000015, "more latents"), (25.0, 9.999999, "max_beta=100"), (25.0, 1.0, "speed=0.08")]
    for level, beta, message in ways:
        assert message in geco_warnings(geco, History(training=[(5, level)], beta=beta))[0]
    assert geco_warnings(geco, History(training=[(5, 20.3)], beta=1.0)) == []
    assert geco_warnings(KLConfig(), History(training=[(5, 1.0)], beta=1.0)) == []


@pytest.mark.parametrize("resumed", [False, True])
def test_distortion_and_rate_are_reported_in_nats_and_bits(resumed, source, tmp_path):
    recorder = Recorder()
    for epochs in (1, 2) if resumed else (1,):
        recorder = Recorder()
        train(request(tmp_path / "run", source, {"loss": MSE_ALONE, "training": {"epochs": epochs}}), [recorder])
    numbers = re.findall(r"-?\d[\d,.]*", fact(recorder, "first batch"))
    nll, nll_bits, kl, kl_bits, both = (float(number.replace(",", "")) for number in numbers)
    dimensions = 3 * 16**2
    assert nll_bits == pytest.approx(nll / dimensions / math.log(2) + 8, abs=2e-3)
    assert kl_bits == pytest.approx(kl / dimensions / math.log(2), abs=2e-4)
    assert both == pytest.approx(nll_bits + kl_bits, abs=1.1e-3)
    first = rows(tmp_path / "run", "train")[0]
    if not resumed:  # the first entry is the mean of a few steps from there
        assert kl == pytest.approx(first["rate.nats"], rel=0.3)
        assert first["rate.nats"] < 50, "free bits count in the loss alone"
        assert first["bits_per_dim"] == pytest.approx(
            (first["loss.nll"] + first["rate.nats"]) / dimensions / math.log(2) + 8
        )


def test_a_mix_of_losses_tells_no_likelihood(source, tmp_path):
    """Bits per dimension of a mix were negative, where 8-bit pixels cannot be coded in less than none."""
    recorder = Recorder()
    train(request(tmp_path / "run", source, {"training": {"epochs": 1}}), [recorder])
    assert re.fullmatch(r"KL [\d.]+ nats per image \([\d.]+ bits per dimension\)", fact(recorder, "first batch"))
    written = [rows(tmp_path / "run", split)[-1].keys() for split in ("train", "validation")]
    shown = [recorder.logged[-1].values.keys(), recorder.validations[-1].values.keys()]
    for names in written + shown:
        assert {"loss.total", "rate.nats", "loss.mse", "loss.l1"} <= names
        assert not [name for name in names if "nll" in name or (name.endswith("bits_per_dim") and "rate" not in name)]
    assert "distortion.nats" in written[1], "for the plane of rate and distortion"


def test_a_capacity_warns_where_beta_is_too_low(source, tmp_path):
    def start(beta, name):
        constraint = {"kind": "capacity", "capacity": 5.0, "initial_capacity": 5.0}
        change = {"loss": {"kl": {"weight": beta, "constraint": constraint}}, "training": {"epochs": 1}}
        train(request(tmp_path / name, source, change), [recorder := Recorder()])
        return recorder

    firm, weak = start(1000.0, "firm"), start(1.0, "weak")
    assert "KL 5 nats" in fact(firm, "predicted")
    assert not [notice for notice in firm.notices if "collapse" in notice]
    assert "capacity" not in dict(firm.started[0].facts)
    assert "too low to hold the KL at 5 nats" in fact(weak, "capacity")


def test_geco_predicts_the_cost_of_its_target(tmp_path):
    source = write_images(tmp_path / "images.npy", count=80)  # enough for a PCA as it is

    def start(psnr, latents=4):
        kl = {"constraint": {"kind": "geco", "psnr": psnr}}
        change = {"loss": {"kl": kl}, "training": {"epochs": 1}, "model": {"latents": latents}}
        train(request(tmp_path / f"{psnr:g}", source, change), [recorder := Recorder()])
        return fact(recorder, "geco")

    line = start(25.0)
    beta, nats = map(float, re.search(r"meets 25 dB at beta ([\d.]+), with KL (\d+) nats", line).groups())
    change = {"loss": {"kl": {"weight": beta}}, "training": {"epochs": 1}}
    train(request(tmp_path / "plain", source, change), [recorder := Recorder()])
    assert f"KL {nats:.0f} nats" in fact(recorder, "predicted")
    sigma = json.loads((tmp_path / "plain" / "preflight.json").read_text())["predicted"]["sigma"]
    assert -20 * math.log10(sigma) == pytest.approx(25.0, abs=0.3)  # beta has three digits
    assert "Use more latents or a lower psnr" in start(40.0, latents=1)
