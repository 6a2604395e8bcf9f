"""Diagnosis from metrics alone: each cause by its own evidence, their order, thresholds, and the recommendation."""

import json
import shlex
from dataclasses import replace

import pytest

from unified_vae.analysis import diagnosis as causes
from unified_vae.analysis import model_cost
from unified_vae.analysis.diagnosis import CAUSES, HEALTHY, Diagnosis, History, PCALine, interpolate
from unified_vae.analysis.recommendation import RunContext, recommend
from unified_vae.cli import train
from unified_vae.cli.app import main
from unified_vae.config.presets import PresetBook
from unified_vae.config.run import RunConfig


def line(latents=64, here=25.0, more=27.0, predicted_active=64, predicted_psnr=25.0, rise_until=None):
    """A curve that rises evenly to `here` at the latents (or before), and to `more` at twice as many."""
    until = rise_until or latents
    first = [14 + (here - 14) * min(k / until, 1.0) for k in range(latents + 1)]
    curve = first + [here + (more - here) * k / latents for k in range(1, latents + 1)]
    eigenvalues = tuple(10.0 / k for k in range(1, 2 * latents + 1))
    return PCALine(3072, latents, eigenvalues, tuple(curve), predicted_active, predicted_psnr)


def course(*values, training=()):
    return History([(10 * n, value) for n, value in enumerate(values, 1)], training)


REST = course(20.0, 24.0, 24.9, 24.95, 25.0, 25.0)
GOOD = {
    "psnr": 25.0,
    "mean_image_psnr": 14.0,
    "rate": 150.0,
    "active_units": 64,
    "latents": 64,
    "images": 200,
    "training_psnr": 25.6,
    "sharpness": 0.8,
    "gap": 3.0,
    "pixel_share": 1.0,
    "beta": 2.0,
    "sigma": 0.05,
    "history": REST,
    "line": line(),
}
FAULTS = {
    causes.BARELY: {"psnr": 12.0, "training_psnr": 12.1, "history": course(12.0), "sharpness": 0.05},
    causes.COLLAPSE: {"psnr": 13.9, "training_psnr": 14.0, "active_units": 2, "rate": 0.01, "sharpness": 0.0},
    causes.OVERFITTED: {"training_psnr": 29.0},
    causes.UNDERTRAINED: {"history": course(20.0, 22.0, 23.0, 24.0, 24.6, 25.0)},
    causes.PARTIAL: {"active_units": 20, "rate": 60.0},
    causes.FEW_LATENTS: {"sharpness": 0.3, "line": line()},
    causes.LOSS_BLUR: {"sharpness": 0.3, "line": line(more=25.3)},
    causes.MISMATCH: {"gap": 80.0, "beta": 0.001},
}


def diagnosed(**change):
    return Diagnosis(**{**GOOD, **change})


def test_a_good_run_is_healthy():
    model = diagnosed()
    assert model.cause == HEALTHY and not any(row.applies for row in model.evidence())
    assert [row.cause for row in model.evidence()] == list(CAUSES) == list(FAULTS)


@pytest.mark.parametrize("cause", FAULTS)
def test_each_cause_is_named_by_its_metrics(cause):
    model = diagnosed(**FAULTS[cause])
    assert model.cause == cause
    assert all(row.text for row in model.evidence())


@pytest.mark.parametrize("earlier", range(len(CAUSES) - 1))
def test_an_earlier_cause_hides_a_later_one(earlier):
    """All that may be combined: the fault's own metrics win where two speak of the same one."""
    for later in CAUSES[earlier + 1 :]:
        assert diagnosed(**{**FAULTS[later], **FAULTS[CAUSES[earlier]]}).cause == CAUSES[earlier]


def test_units_lost_after_the_best_weights_count_as_lost():
    over = course(20.0, 17.0, 15.0, 14.0)
    lost = replace(over, last={**over.last, "active_units": 0.0})
    model = diagnosed(active_units=17, history=lost)
    assert (model.cause, model.verdict) == (causes.COLLAPSE, causes.COLLAPSE)
    assert "17 of 64 units active, 0 at the end of the run" in model.evidence()[1].text


def test_a_few_steps_from_the_pca_init_are_not_overfitting():
    assert diagnosed(training_psnr=29.0, history=course(25.0, 25.1)).cause == causes.UNDERTRAINED
    assert diagnosed(training_psnr=29.0, history=History()).cause == causes.OVERFITTED, "its course is lost"


@pytest.mark.parametrize("history", [History(), course(25.0, 25.1), course(20.0, 22.0, 23.0, 24.0, 24.6, 25.0)])
def test_a_gap_of_many_decibels_is_overfitting_at_any_step(history):
    assert diagnosed(training_psnr=38.0, history=history).cause == causes.OVERFITTED


def test_a_run_below_a_linear_map_is_undertrained_even_at_rest():
    blurred = {"sharpness": 0.3, "psnr": 22.0, "training_psnr": 22.5, "history": course(*[22.0] * 6)}
    assert diagnosed(**blurred).cause == causes.UNDERTRAINED
    at_high_beta = line(predicted_psnr=22.5)  # there the linear VAE itself is no better
    assert diagnosed(**blurred, line=at_high_beta).cause == causes.FEW_LATENTS


def test_what_cannot_be_seen_is_no_blur():
    assert diagnosed(psnr=42.0, training_psnr=42.0, sharpness=0.3, line=line(here=42.0, more=45.0)).cause == HEALTHY


def test_units_that_the_images_do_not_need_are_not_missed():
    few = line(latents=64, rise_until=4)
    assert few.needed <= 4
    assert diagnosed(active_units=4, line=few).cause == HEALTHY
    assert diagnosed(active_units=4).cause == causes.COLLAPSE


def test_an_overfitted_run_may_lie_below_the_mean_image():
    assert diagnosed(psnr=12.0, training_psnr=30.0).cause == causes.OVERFITTED


def test_few_validation_images_flatter_their_own_mean():
    near = {"psnr": 13.0, "training_psnr": 13.0, "history": course(*[13.0] * 6)}
    assert diagnosed(**near).cause == causes.BARELY
    assert diagnosed(**near, images=4).cause != causes.BARELY


def test_a_single_validation_image_proves_no_collapse():
    model = diagnosed(images=1, active_units=0, mean_image_psnr=120.0)
    unknown = (causes.COLLAPSE, causes.PARTIAL, causes.BARELY)
    assert model.cause not in unknown
    assert "single" in model.verdict
    rows = {row.cause: row.applies for row in model.evidence()}
    assert [rows[cause] for cause in unknown] == [None, None, None]


def test_a_fall_counts_where_training_went_on_to_learn():
    falling = course(22.0, 25.0, 24.6, 24.4, 24.2, 24.0, training=[(10 * n, 20.0 + n) for n in range(1, 7)])
    assert diagnosed(psnr=25.0, training_psnr=25.5, history=falling).cause == causes.OVERFITTED
    unstable = course(22.0, 25.0, 24.6, 24.4, 24.2, 24.0, training=[(10 * n, 22.0 - n) for n in range(1, 7)])
    assert diagnosed(psnr=25.0, training_psnr=25.5, history=unstable).cause == HEALTHY


def test_a_gap_of_two_decibels_counts_only_at_rest():
    assert diagnosed(training_psnr=27.0).cause == causes.OVERFITTED
    rising = course(20.0, 22.0, 23.0, 24.0, 24.6, 25.0)
    assert diagnosed(training_psnr=27.0, history=rising).cause == causes.UNDERTRAINED


def test_what_was_not_measured_is_unknown_and_never_a_cause():
    bare = Diagnosis(25.0, 14.0, 150.0, 64, 64)
    unknown = {row.cause for row in bare.evidence() if row.applies is None}
    assert bare.cause == HEALTHY
    assert unknown == {causes.OVERFITTED, causes.UNDERTRAINED, causes.FEW_LATENTS, causes.LOSS_BLUR, causes.MISMATCH}


# --- the course of a run ---------------------------------------------------------------------------------


def test_the_second_half_uses_validations_or_training_rows():
    assert course(1.0, 2.0, 3.0, 4.0).second_half_gain() == pytest.approx(2.0)
    assert course(1.0, 2.0, 3.0).second_half_gain() is None
    rising = History([(100, 20.0)], [(step, step / 10) for step in range(10, 101, 10)])
    assert rising.second_half_gain() == pytest.approx(4.0)
    assert interpolate([(10, 1.0), (20, 3.0)], 15) == 2.0 and interpolate([(10, 1.0)], 99) == 1.0


def test_a_metrics_file_that_is_being_written_can_be_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [
        {"split": "train", "step": 5, "loss.mse": 0.01, "beta": 2.0, "sigma": 0.1},
        {"split": "validation", "step": 10, "psnr": 20.0, "rate.nats": 7.0, "loss.nll": -30.0},  # of before
        {"split": "validation", "step": 20, "psnr": 20.5, "rate.nats": 8.0, "distortion.nats": -40.0},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"split": "train", "st', encoding="utf-8")
    history = History.read(path)
    assert (history.validation, history.training) == ([(10, 20.0), (20, 20.5)], [(5, 20.0)])
    assert history.path == [(7.0, -30.0), (8.0, -40.0)]
    assert (history.beta, history.sigma, history.last["psnr"]) == (2.0, 0.1, 20.5)
    assert History.read(path, until=5).validation == [] and History.read(tmp_path / "none").steps == 0


# --- the recommendation ------------------------------------------------------------------------------------------

CONFIG = RunConfig.model_validate_json('{"data": {"source": "my photos.zip"}}')
COMMANDS = {
    causes.BARELY: ["--epochs", "500"],
    causes.COLLAPSE: ["--mode", "resume_fix", "--run-dir", "runs/my run"],
    causes.OVERFITTED: ["--set", "data.augment.horizontal_flip=true"],
    causes.UNDERTRAINED: ["--run-dir", "runs/my run", "--epochs", "100"],
    causes.PARTIAL: ["--mode", "resume_fix", "--run-dir", "runs/my run"],
    causes.FEW_LATENTS: ["--set", "model.latents=128"],
    causes.LOSS_BLUR: ["--mode", "resume_fix", "--set", "loss.laplacian.weight=0.05"],
    causes.MISMATCH: ["--beta", "4"],
    HEALTHY: ["--logdir", "runs/my run/tensorboard"],
}


@pytest.fixture
def context(tmp_path, monkeypatch):
    """A run with its folder as a user writes it. Commands are planned and checked; no model is built for a dry run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model_cost, "model_cost", lambda _: None)
    monkeypatch.setattr(train, "model_lines", lambda *_: [])
    folder = tmp_path / "runs" / "my run"
    folder.mkdir(parents=True)
    (tmp_path / CONFIG.data.source).touch()
    config = CONFIG.model_dump(mode="json")
    record = {"config": config, "requested": config, "names": {"loss": "mse_l1", "model": "small", "dataset": "full"}}
    (folder / "config.json").write_text(json.dumps(record), encoding="utf-8")
    return RunContext(CONFIG, folder.relative_to(tmp_path), record["names"])


def composes(command):
    """Whether its program accepts the command."""
    words = shlex.split(command)
    return words[2] == "tensorboard" or main(words[2], [*words[3:], "--dry-run"]) == 0


@pytest.mark.parametrize("cause", COMMANDS)
def test_each_cause_has_one_command_that_works(cause, context, capsys):
    assert PresetBook.load()
    model = diagnosed(**FAULTS.get(cause, {}))
    command = recommend(model, context).command
    words = shlex.split(command)
    assert words[:2] == ["uv", "run"]
    assert all(word in words for word in COMMANDS[cause]), command
    assert composes(command), capsys.readouterr().err
    bare = recommend(model, RunContext(CONFIG, None)).command
    assert bare == "" if cause == HEALTHY else composes(bare), capsys.readouterr().err


def test_a_repair_that_did_not_help_is_not_advised_again(context):
    repaired = RunContext(CONFIG, context.run_dir, {"mode": "resume_fix"})
    for cause in (causes.COLLAPSE, causes.PARTIAL, causes.LOSS_BLUR):
        assert "resume_fix" not in recommend(diagnosed(**FAULTS[cause]), repaired).command


def test_a_beta_that_explains_idle_units_is_lowered(context):
    model = diagnosed(active_units=20, beta=100.0, sigma=0.1, line=line(predicted_active=20))
    words = shlex.split(recommend(model, context).command)
    new = float(words[words.index("--beta") + 1])
    assert model.line is not None and new * 0.1**2 < model.line.eigenvalues[model.needed_units - 1]
    assert new <= 50


def test_a_run_that_is_not_over_goes_on(context):
    unfinished = RunContext(CONFIG, context.run_dir, finished=False)
    command = recommend(diagnosed(**FAULTS[causes.UNDERTRAINED]), unfinished).command
    assert "--epochs" not in command and command.endswith("--run-dir 'runs/my run'")


def test_all_images_come_before_mirrored_ones(context):
    part = CONFIG.model_copy(update={"data": CONFIG.data.model_copy(update={"max_images": 100})})
    model = diagnosed(**FAULTS[causes.OVERFITTED])
    assert "data.max_images=null" in recommend(model, RunContext(part, context.run_dir, images=100)).command
    assert "data.max_images" not in recommend(model, RunContext(part, context.run_dir, images=60)).command


@pytest.mark.parametrize(
    ("flip", "shift", "option"),
    [
        (False, 0.0, "data.augment.horizontal_flip=true"),
        (True, 0.0, "data.augment.affine.translate=0.06"),
        (True, 0.06, "model.base_channels=32"),
    ],
)
def test_what_the_run_does_already_is_not_advised(flip, shift, option, context):
    config = CONFIG.replace(**{"data.augment.horizontal_flip": flip, "data.augment.affine.translate": shift})
    command = recommend(diagnosed(**FAULTS[causes.OVERFITTED]), RunContext(config, context.run_dir)).command
    assert f"--set {option}" in command
    assert composes(command)


@pytest.mark.parametrize(
    ("beta", "words"),
    [(1.0, "--beta 4"), (3.0, "--beta 6"), (6.0, "--beta 10"), (10.0, "model.latents=32"), (40.0, "model.latents=32")],
)
def test_beta_is_raised_up_to_ten_then_latents_are_reduced(beta, words, tmp_path):
    model = diagnosed(**{**FAULTS[causes.MISMATCH], "gap": 200.0, "rate": 500.0, "beta": beta})
    assert model.cause == causes.MISMATCH
    assert recommend(model, RunContext(CONFIG, tmp_path)).command.endswith(words)


@pytest.mark.parametrize(
    ("constraint", "fault", "words"),
    [
        ({"kind": "capacity", "capacity": 40.0}, causes.PARTIAL, ["loss.kl.constraint.capacity=80"]),
        (
            {"kind": "capacity", "capacity": 40.0, "initial_capacity": 30.0},
            causes.MISMATCH,
            ["constraint.capacity=20", "initial_capacity=20"],
        ),
        ({"kind": "geco", "psnr": 25.0}, causes.PARTIAL, ["loss.kl.constraint.psnr=27"]),
        ({"kind": "geco", "psnr": 25.0}, causes.MISMATCH, ["loss.kl.constraint.psnr=23"]),
    ],
)
def test_a_constraint_is_changed_and_not_beta(constraint, fault, words, tmp_path):
    change = {"line": line(predicted_active=20)} if fault == causes.PARTIAL else {}
    model = diagnosed(**{**FAULTS[fault], **change})
    assert model.cause == fault
    config = RunConfig.model_validate({"loss": {"kl": {"constraint": constraint}}})
    recommendation = recommend(model, RunContext(config, tmp_path))
    assert "--beta" not in recommendation.command
    for word in words:
        assert word in recommendation.command


def test_the_pca_line_is_the_clipped_one_of_the_run():
    content = {
        "dimensions": 12, "latents": 2, "eigenvalues": [1.0, 0.5], "validation_total": 2.0,
        "validation_variances": [1.0, 0.5], "psnr_pca": 14.5, "predicted": {"active_units": 2, "psnr": 13.0},
    }  # fmt: skip
    assert PCALine.from_json(content).psnr == 14.5
    assert PCALine.from_json({**content, "psnr_pca": None}).psnr == pytest.approx(13.8, abs=0.01)
