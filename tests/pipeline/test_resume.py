"""Starting again with other settings or other images: what is allowed, what is said, what is refused."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.helpers.runs import Recorder, merged, request, train, write_images
from unified_vae.core.errors import CheckpointError, ConfigError, DataError, EnvironmentProblem
from unified_vae.inference.load import load_model
from unified_vae.pipeline.fit import fit

SHORT = {"training": {"epochs": 2}}


def go(run_dir, source, change=None, **more):
    torch.set_num_threads(1)
    recorder = Recorder()
    train(request(run_dir, source, change or SHORT, **more), [recorder])
    return recorder


@pytest.fixture(scope="module")
def finished(source, tmp_path_factory):
    """A run of two epochs, to be copied by each test."""
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    fit(request(run_dir, source, SHORT))
    return run_dir


@pytest.fixture
def run_dir(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def test_the_folder_holds_what_the_guide_promises(run_dir):
    names = {path.name for path in run_dir.iterdir()}
    files = {"config.json", "preflight.json", "metrics.jsonl", "timing.jsonl", "closing.json", "report.html"}
    (images,) = {path.name for path in run_dir.glob("images-*.tsv")}  # named after what is in it
    assert names == files | {images, "checkpoints", "samples", "tensorboard", "model"}
    assert {path.name for path in (run_dir / "samples").iterdir()} == {
        f"epoch-000{epoch}-{tag}.png" for epoch in (0, 1, 2) for tag in ("reconstructions", "samples", "interpolation")
    } | {"final-samples.png"}
    record = json.loads((run_dir / "config.json").read_text())
    assert record["config"]["model"]["channels"] == 3 and record["requested"]["model"]["channels"] == "auto"
    assert record["origins"]["model.channels"] == "the data"


def test_more_epochs_continue_a_finished_run(run_dir, source):
    recorder = go(run_dir, source, {"training": {"epochs": 3}, "loss": {"kl": {"weight": 3.0}}})
    (started,) = recorder.started
    changed = {(difference.path, difference.before, difference.now) for difference in started.differences}
    assert changed == {("training.epochs", 2, 3), ("loss.kl.weight", 2.0, 3.0)}
    epoch = started.steps_per_epoch
    assert (started.resumed, started.start_step, recorder.finished.step) == (True, 2 * epoch, 3 * epoch)
    assert [row.weight for row in started.terms if row.name == "loss.kl"] == [3.0]


def test_beta_and_weights_are_reported_at_start_and_resume(run_dir, source):
    (started,) = go(run_dir, source, {"training": {"epochs": 3}}).started
    terms = ("mse", "l1", "charbonnier", "laplacian", "focal_frequency", "perceptual", "lpips", "haarpsi", "ms_ssim")
    assert {row.name for row in started.terms} == {f"loss.{name}" for name in (*terms, "kl")}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": {"latents": 5}}, "Give the old value: --set model.latents=4"),
        ({"model": {"image_size": 32}}, "model.image_size"),
        ({"model": {"base_channels": 8}}, "model.base_channels"),
        ({"seed": 1}, "seed"),
        ({"training": {"batch_size": 4}}, "training.batch_size"),
        ({"training": {"optimizer": {"kind": "sgd"}}}, "training.optimizer.kind"),
    ],
)
def test_what_a_run_cannot_change_is_refused_with_a_way_out(run_dir, source, change, named):
    with pytest.raises(ConfigError, match=named) as problem:
        go(run_dir, source, {**SHORT, **change})
    assert "--no-resume" in str(problem.value)


def test_a_single_value_is_asked_for_by_the_option_that_it_has(run_dir, source):
    asked = request(run_dir, source, {**SHORT, "seed": 1, "loss": {"kl": {"weight": 3.0}}})
    for origin, way in (("--seed", "--seed 0;"), ("--set", "--set seed=0;")):
        run = replace(asked.run, origins={"seed": origin})
        with pytest.raises(ConfigError, match=rf": seed differs from its checkpoint\. Give the old value: {way}"):
            train(replace(asked, run=run), [Recorder()])


def test_saying_what_auto_was_resolved_to_is_no_change(run_dir, source):
    assert go(run_dir, source, {**SHORT, "model": {"channels": 3}}).finished.outcome == "already finished"


def test_other_images_are_refused_unless_accepted(run_dir, source, tmp_path):
    other = tmp_path / source.name
    images = np.load(source)
    images[0] = 255 - images[0]
    np.save(other, images)
    longer = {"training": {"epochs": 3}}
    with pytest.raises(DataError, match=r"data\.allow_changed_data=true"):
        go(run_dir, other, longer)
    recorder = go(run_dir, other, {**longer, "data": {"allow_changed_data": True}})
    assert any(difference.path == "data (accepted)" for difference in recorder.started[0].differences)


def test_no_resume_moves_the_old_run_aside_whole(run_dir, source):
    before = {path.relative_to(run_dir): path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    recorder = go(run_dir, source, resume=False)
    (moved,) = run_dir.parent.glob("run-before-*")
    assert {path.relative_to(moved): path.read_bytes() for path in moved.rglob("*") if path.is_file()} == before
    assert any(str(moved) in notice for notice in recorder.notices)
    assert recorder.started[0].start_step == 0 and recorder.finished.outcome == "finished"


def test_a_damaged_newest_checkpoint_is_named_and_skipped(run_dir, source):
    newest = max((run_dir / "checkpoints").iterdir())
    (newest / "model.safetensors").write_bytes(b"")
    recorder = go(run_dir, source)
    epoch = recorder.started[0].steps_per_epoch
    assert any(f"step {2 * epoch}" in notice and "model.safetensors" in notice for notice in recorder.notices)
    assert recorder.started[0].start_step < 2 * epoch == recorder.finished.step
    assert (run_dir / "model" / "config.json").exists()


def test_all_damaged_is_never_a_silent_fresh_start(run_dir, source):
    for folder in (run_dir / "checkpoints").iterdir():
        (folder / "state.json").write_bytes(b"{}")
    with pytest.raises(CheckpointError, match="--no-resume"):
        go(run_dir, source)


def test_patience_ends_a_run_and_the_same_command_says_so(source, tmp_path):
    stop = {"training": {"epochs": 6, "early_stopping": {"patience": 1, "min_delta": 50.0}}}
    recorder = go(tmp_path / "run", source, stop)
    whole = recorder.started[0].total_steps
    assert recorder.finished.outcome == "stopped early" and recorder.finished.step < whole
    assert go(tmp_path / "run", source, stop).finished.outcome == "already finished"
    patient = {"training": {"epochs": 6, "early_stopping": {"patience": None}}}
    assert go(tmp_path / "run", source, patient).finished.step == whole


def test_a_run_ended_by_patience_before_its_export_only_exports(source, tmp_path):
    """A kill between the last save and the export must neither lose the model nor train on."""
    stop = {"training": {"epochs": 6, "early_stopping": {"patience": 1, "min_delta": 50.0}}}
    step = go(tmp_path / "run", source, stop).finished.step
    (tmp_path / "run" / "model" / "config.json").unlink()
    metrics = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    again = go(tmp_path / "run", source, stop)
    assert (again.finished.outcome, again.finished.step) == ("stopped early", step)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == metrics
    assert go(tmp_path / "run", source, stop).finished.outcome == "already finished"


def test_the_checkpoint_remembers_a_change_and_not_the_folder(run_dir, source):
    """A start that was killed before it saved has changed nothing: the next one still sees the difference."""

    class Killed(Exception):
        pass

    class Dies(Recorder):
        def step_done(self, event):
            raise Killed

    longer = {"training": {"epochs": 3, "optimizer": {"kind": "adamw", "lr": 1e-4}}}
    with pytest.raises(Killed):
        train(request(run_dir, source, longer), [Dies()])
    (started,) = go(run_dir, source, longer).started
    assert {"training.optimizer.lr", "training.epochs"} == {difference.path for difference in started.differences}


def test_another_set_of_terms_is_refused_in_words(run_dir, source):
    with pytest.raises(ConfigError, match=r"loss terms mse, l1, and is now asked for mse, l1, ms_ssim"):
        go(run_dir, source, {"training": {"epochs": 3}, "loss": {"ms_ssim": {"weight": 0.1}}})


def test_a_read_only_folder_is_an_error_before_any_work(source, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EnvironmentProblem, match="--run-dir"):
        go(tmp_path / "file" / "run", source)


def test_a_replaced_term_stays_replaced_and_is_named_each_time(source, tmp_path):
    change = {"training": {"epochs": 2}, "loss": {"perceptual": {"weight": 0.05}}}
    first = go(tmp_path / "run", source, change)
    again = go(tmp_path / "run", source, {**change, "training": {"epochs": 3}})
    for recorder in (first, again):
        assert any("loss.perceptual is replaced by loss.haarpsi" in notice for notice in recorder.notices)
        weights = {row.name: row.weight for row in recorder.started[0].terms}
        assert weights["loss.perceptual"] == 0 and weights["loss.haarpsi"] == 0.05


@pytest.mark.parametrize("count", [2, 3, 9])
def test_tiny_sets_train(count, tmp_path):
    source = write_images(tmp_path / "images.npy", count=count)
    recorder = go(tmp_path / "run", source)
    assert recorder.finished.outcome == "finished" and recorder.finished.step >= 2


def test_a_run_of_another_family_is_continued_by_its_own_record(run_dir, source):
    with pytest.raises(ConfigError) as refused:
        go(
            run_dir,
            source,
            {**SHORT, "model": {"family": "residual", "image_size": 8, "latents": 4, "base_channels": 8}},
        )
    assert f"--config {run_dir}/config.json --run-dir {run_dir}" in str(refused.value)


def test_old_runs_without_refine_resolution_continue(source, tmp_path):
    """Up to 64 px both places are the same network."""
    model = {"family": "residual", "image_size": 8, "latents": 4, "base_channels": 8}
    go(tmp_path / "run", source, {**SHORT, "model": model})
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    for part in ("config", "requested"):
        del record[part]["model"]["refine_resolution"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(record))
    again = go(tmp_path / "run", source, {"training": {"epochs": 3}, "model": model})
    assert again.finished.outcome == "finished" and again.started[0].resumed


def test_a_residual_run_of_an_earlier_version_is_read_as_it_was(source, tmp_path):
    """Its record and its model lack the settings that came later; what is written of them anew does not."""
    model = {"family": "residual", "image_size": 8, "latents": 4, "base_channels": 8}
    before = {**model, "pre_encoder_blocks": 0, "bottleneck_channels": 2**20, "refine_resolution": "full"}
    go(tmp_path / "run", source, {**SHORT, "model": before})
    for path, parts in (("config.json", ("config", "requested")), ("model/config.json", ("model",))):
        content = json.loads((tmp_path / "run" / path).read_text())
        for part in parts:
            settings = content[part] if part == "model" else content[part]["model"]
            for name in before.keys() - model.keys():
                del settings[name]
        (tmp_path / "run" / path).write_text(json.dumps(content))
    again = go(tmp_path / "run", source, {"training": {"epochs": 3}, "model": before})
    assert again.finished.outcome == "finished" and again.started[0].resumed
    shutil.copytree(tmp_path / "run" / "model", tmp_path / "alone")
    loaded = load_model(tmp_path / "alone", require_data=False)
    assert loaded.config.model.pre_encoder_blocks == 0 and loaded.config.model.bottleneck_channels == 2**20


def test_augmentation_chosen_by_the_images_is_kept(tmp_path):
    auto = {"horizontal_flip": "auto", "affine": {"translate": "auto"}}
    change = {"data": {"augment": auto, "allow_changed_data": True}, "training": {"epochs": 1}}
    few, many = (write_images(tmp_path / f"{count}.npy", count) for count in (14, 60))  # 4 latents: few below 16
    go(tmp_path / "run", few, change)
    longer = merged(change, {"training": {"epochs": 2}})
    (started,) = go(tmp_path / "run", many, longer).started
    assert "shifted by up to 0.06" in dict(started.facts)["augmentation"]
    assert not any(difference.path.startswith("data.augment") for difference in started.differences)
    (started,) = go(tmp_path / "new", many, change).started
    assert "shifted" not in dict(started.facts)["augmentation"]
