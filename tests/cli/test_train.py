"""The training commands: what each option sets, where runs go, what is printed, and which exit code follows."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from unified_vae.cli.app import PRESET_OPTIONS, main
from unified_vae.config.presets import FLAGS, SECTIONS
from unified_vae.config.run import ComposedRun
from unified_vae.core.errors import DataError, Diverged, EnvironmentProblem

MODES = ["quick_test", "fast_high_quality", "ultra_high_quality", "balanced_high_quality", "full_retrain"]
FLAG_VALUES = {
    "--data": ("photos.zip", "photos.zip"),
    "--epochs": ("7", 7),
    "--batch-size": ("24", 24),
    "--lr": ("0.00025", 0.00025),
    "--beta": ("3.5", 3.5),
    "--seed": ("11", 11),
    "--device": ("cuda:1", "cuda:1"),
    "--precision": ("bf16", "bf16"),
}


def value_at(run: ComposedRun, path: str) -> object:
    value: object = run.config
    for name in path.split("."):
        value = getattr(value, name)
    return value


def test_every_named_flag_has_a_value_to_test() -> None:
    assert set(FLAG_VALUES) == set(FLAGS)


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("which", ["train", "train_unified"])
def test_a_flag_reaches_its_field_and_is_named_as_origin(commands, flag: str, which: str) -> None:
    text, value = FLAG_VALUES[flag]
    Path("photos.zip").touch()
    words = ["--mode", "quick_test"] if which == "train" else []
    code, _, error = getattr(commands, which)(*words, flag, text)
    assert (code, error) == (0, "")
    run = commands.request().run
    assert value_at(run, FLAGS[flag]) == value
    assert run.origins[FLAGS[flag]] == flag


def test_missing_images_are_reported_at_once(commands) -> None:
    Path("photos.zip").touch()
    code, out, error = commands.train("--mode", "quick_test", "--data", "fotos.zip")
    assert (code, out, commands.requests) == (2, "", [])
    assert "no file or folder 'fotos.zip'. Did you mean 'photos.zip'" in error


def test_a_run_may_not_write_into_its_own_images(commands) -> None:
    Path("photos").mkdir()
    code, _, error = commands.train("--mode", "quick_test", "--data", "photos", "--run-dir", "./photos")
    assert (code, commands.requests) == (2, [])
    assert "--run-dir and --data are the same folder" in error


def test_an_empty_folder_is_reported_at_once(commands) -> None:
    Path("photos").mkdir()
    code, out, error = commands.train("--mode", "quick_test", "--data", "photos")
    assert (code, out, commands.requests) == (2, "", [])
    assert "The folder 'photos' is empty" in error and error.count("\n") == 1


def test_settings_of_a_finished_run_are_not_listed_again(commands) -> None:
    run = Path("runs/mine")
    write_record(commands, run)
    (run / "model").mkdir()
    (run / "model" / "config.json").write_text('{"run": {"trained_steps": 40}}')
    words = ["--mode", "quick_test", "--run-dir", "runs/mine"]
    for step, more, listed in (
        (40, [], False),
        (40, ["--beta", "3"], True),
        (40, ["--no-resume"], True),
        (50, [], True),
    ):
        (run / "checkpoints" / f"step-{step:09}").mkdir(parents=True, exist_ok=True)
        code, out, _ = commands.train(*words, *more)
        assert code == 0 and commands.requests.pop()
        assert ("kl.weight (beta)" in out, "settings: as those of the run in runs/mine" in out) == (listed, not listed)


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_goes_to_its_own_folder(commands, mode: str) -> None:
    code, _, _ = commands.train("--mode", mode)
    request = commands.request()
    assert code == 0
    assert request.run_dir == Path("runs") / mode
    assert request.resume
    assert request.fix_from is None
    assert request.run.names["mode"] == mode


def test_presets_compose_the_same_run_as_the_mode(commands) -> None:
    commands.train("--mode", "fast_high_quality")
    words = ["--loss-preset", "high_quality", "--training-preset", "fast_high_quality_training"]
    commands.train_unified(*words, "--model-preset", "fast_high_quality", "--dataset-preset", "full")
    by_mode, by_presets = commands.requests
    assert by_mode.run.config == by_presets.run.config
    assert by_presets.run_dir == Path("runs/high_quality-fast_high_quality_training-fast_high_quality-full")


def test_another_augmentation_is_another_folder(commands) -> None:
    """So that a run of the four older options is found again where it always was."""
    for words in ([], ["--augment-preset", "auto"], ["--augment-preset", "flip"]):
        assert commands.train_unified(*words)[0] == 0
    usual, auto, flip = commands.requests
    assert usual.run_dir == auto.run_dir == Path("runs/high_quality-fast_high_quality_training-fast_high_quality-full")
    assert flip.run_dir == Path("runs/high_quality-fast_high_quality_training-fast_high_quality-full-flip")
    assert usual.run.config == auto.run.config
    assert flip.run.config.data.augment.horizontal_flip


def test_default_presets_are_in_the_help(commands) -> None:
    commands.train_unified()
    _, help_text, _ = commands.train_unified("--help")
    names = commands.request().run.names
    assert set(names) == {"loss", "training", "model", "dataset", "augment"}
    assert all(f"({name})" in help_text for name in names.values())


def test_presets_command_without_options_shows_its_help(commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train_unified.py"])
    assert main("train_unified.py") == 0
    shown = commands.capsys.readouterr()
    assert shown.out.startswith("Usage: train_unified.py") and shown.err == ""
    monkeypatch.setattr(sys, "argv", ["train_unified.py", "--no-resume"])
    assert main("train_unified.py") == 0
    assert commands.request().command == "uv run train_unified.py --resume"  # not the help


def test_no_resume_and_run_dir_are_handed_on(commands, tmp_path: Path) -> None:
    commands.train("--mode", "quick_test", "--no-resume", "--run-dir", str(tmp_path / "here"))
    request = commands.request()
    assert not request.resume
    assert request.run_dir == tmp_path / "here"


def test_the_restart_command_continues_the_same_run(commands) -> None:
    Path("my photos.zip").touch()
    commands.train("--mode", "quick_test", "--no-resume", "--data", "my photos.zip")
    assert commands.request().command == "uv run train.py --mode quick_test --data 'my photos.zip'"


@pytest.mark.parametrize(
    ("here", "everywhere", "launcher"),
    [(2, 2, "torchrun --standalone --nproc-per-node 2"), (8, 16, "torchrun --nnodes 2 --nproc-per-node 8")],
)
def test_the_restart_command_starts_as_many_processes(commands, monkeypatch, here, everywhere, launcher) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "a", "LOCAL_WORLD_SIZE": here, "WORLD_SIZE": everywhere}.items():
        monkeypatch.setenv(name, str(value))
    commands.train("--mode", "quick_test")
    assert commands.request().command == f"uv run {launcher} train.py --mode quick_test"


def test_set_wins_over_flags_and_flags_over_the_mode(commands) -> None:
    commands.train("--mode", "quick_test", "--beta", "3", "--set", "loss.kl.weight=4", "--epochs", "2")
    run = commands.request().run
    assert run.config.loss.kl.weight == 4
    assert run.config.training.epochs == 2
    assert run.origins["loss.kl.weight"] == "--set"


def test_a_flag_survives_a_change_of_kind(commands) -> None:
    commands.train("--mode", "full_retrain", "--lr", "0.1", "--set", "training.optimizer.kind=sgd")
    optimizer = commands.request().run.config.training.optimizer
    assert optimizer.kind == "sgd"
    assert optimizer.lr == 0.1


def test_dry_run_shows_the_run_and_starts_nothing(commands) -> None:
    code, out, _ = commands.train("--mode", "quick_test", "--dry-run", "--beta", "3.25")
    assert code == 0
    assert not commands.requests
    assert "kl.weight (beta)" in out
    assert "3.25" in out
    assert "runs/quick_test" in out


def test_list_presets_names_everything(commands) -> None:
    from unified_vae.config.presets import SECTIONS, PresetBook

    book = PresetBook.load()
    for which in (commands.train, commands.train_unified):
        code, out, _ = which("--list-presets")
        assert code == 0
        for name in [*book.modes, *(name for kind in SECTIONS for name in book.presets(kind))]:
            assert f"  {name} " in out
        for mode in book.modes.values():
            assert mode.use_case.split(";")[0] in " ".join(out.split())


def test_without_a_mode_the_table_is_shown(commands) -> None:
    code, out, error = commands.train()
    assert (code, out) == (2, "")
    assert all(mode in error for mode in [*MODES, "resume_fix"])
    assert "uv run train.py --mode" in error


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--mode", "fast_high_qualty"], "'fast_high_quality'"),
        (["--mode", "quick_test", "--epoch", "3"], "--epochs"),
        (["--mode", "quick_test", "--epochs", "many"], "--epochs"),
        (["--mode", "quick_test", "--epochs", "0"], "training.epochs: should be greater than or equal to 1, got 0"),
        (["--mode", "quick_test", "--beta", "nan"], "--beta: loss.kl.weight: should be a finite number"),
        (["--mode", "quick_test", "--lr", "-1"], "--lr: training.optimizer.lr: should be greater than 0"),
        (["--mode", "quick_test", "--batch-size", "many"], "a whole number of at least 1, or \"auto\", got \"many\""),
        (["--mode", "quick_test", "--precision", "fp8"], "'auto', 'fp32', 'bf16' or 'fp16', got the text"),
        (["--mode", "quick_test", "--device", "gpu"], "auto, cpu, cuda, cuda:N or mps"),
        (["--mode", "quick_test", "--set", "beta"], "path=value"),
        (["--mode", "quick_test", "--set", "loss.kl.wieght=2"], "'loss.kl.weight'"),
        (["--mode", "quick_test", "--set", "optimizer.lr=2"], "'training.optimizer.lr'"),
        (["--mode", "quick_test", "--set", "loss.kl.weight=two"], "should be a valid number, got the text \"two\""),
        (["--mode", "quick_test", "--set", "loss.kl.weight=NaN"], "should be a valid number, got the text \"NaN\""),
        (["--mode", "quick_test", "--set", "training.epochs=2.5"], "should be a valid integer"),
        (["--mode", "quick_test", "--set", "training.epochs=true"], "should be a valid integer, got true"),
        (["--mode", "quick_test", "--set", "training.optimizer.kind=sdg"], "'sgd'"),
        (["--mode", "quick_test", "--set", "training.optimizer.momentum=0.5"], "another kind than 'adamw'"),
        (["--mode", "quick_test", "--set", "loss.kl={\"weight\": "], "--set loss.kl:1:11: expecting value"),
        (["--mode", "quick_test", "--set", "loss.mse.weight=0", "--set", "loss.l1.weight=0"], "above 0"),
        (["--mode", "quick_test", "--set", "training.gradient_accumulation_steps=99"], "larger than training.batch"),
        (["--mode", "quick_test", "--config", "none.json"], "none.json is not there"),
        (["--mode", "resume_fix"], "no run to fix in runs/fast_high_quality"),
        (["--mode", "quick_test", "--loss-preset", "sharp"], "--loss-preset is an option of train_unified.py"),
        (["--augment-preset=flip"], "--augment-preset is an option of train_unified.py"),
        (["extra"], "extra"),
        (["--mode"], "--mode"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(commands, words: list[str], part: str) -> None:
    code, out, error = commands.train(*words)
    assert (code, out) == (2, "")
    assert not commands.requests
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert part in error


@pytest.mark.parametrize("kind", ["loss", "training", "model", "dataset", "augment"])
def test_an_unknown_preset_names_the_nearest(commands, kind: str) -> None:
    code, _, error = commands.train_unified(f"--{kind}-preset", "smal" if kind != "training" else "quick_tset")
    assert code == 2
    assert f"no {kind} preset" in error
    assert "Did you mean" in error or "Known:" in error


@pytest.mark.parametrize("error", [DataError("no images"), EnvironmentProblem("no disk"), Diverged("not finite")])
def test_an_error_of_the_run_gives_its_sentence_and_code(commands, error: DataError) -> None:
    commands.error = error
    code, _, text = commands.train("--mode", "quick_test")
    assert code == error.exit_code
    assert text == f"error: {error}\n"


def test_the_exit_code_of_the_run_is_passed_on(commands) -> None:
    commands.exit_code = 143
    assert commands.train("--mode", "quick_test")[0] == 143


def test_an_interrupt_outside_the_loop_is_130(commands) -> None:
    commands.error = KeyboardInterrupt()
    assert commands.train("--mode", "quick_test")[0] == 130


def test_our_own_mistakes_are_not_hidden(commands) -> None:
    commands.error = ZeroDivisionError("ours")
    with pytest.raises(ZeroDivisionError):
        commands.train("--mode", "quick_test")


def test_a_follower_keeps_silent_but_for_errors(commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    code, out, error = commands.train("--mode", "quick_test")
    assert (code, out, error) == (0, "", "")
    assert commands.observers == []
    code, _, error = commands.train("--mode", "quick")
    assert code == 2
    assert error


# --- resume_fix and records of runs ------------------------------------------------------------------


def write_record(commands, run_dir: Path, *words: str) -> ComposedRun:
    """Leave the folder of a run of `quick_test` with these words, as `fit` would."""
    Path("photos.zip").touch()
    commands.train("--mode", "quick_test", *words)
    run = commands.requests.pop().run
    run_dir.mkdir(parents=True)
    config = run.config.model_dump(mode="json")
    content = {"config": config, "requested": config, "origins": run.origins, "names": run.names}
    (run_dir / "config.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
    return run


def test_options_of_the_other_script_are_explained(commands) -> None:
    code, out, error = commands.train_unified("--mode", "quick_test")
    assert (code, out) == (2, "") and "--mode is an option of train.py: uv run train.py --mode NAME" in error
    help_text = commands.train_unified("--help")[1]
    assert tuple(f"--{kind}-preset" for kind in SECTIONS) == PRESET_OPTIONS
    assert all(option in help_text for option in PRESET_OPTIONS)
    assert "is an option of" not in commands.train_unified("--modes", "quick_test")[2]


@pytest.mark.parametrize("mode", ["resume_fix", "quick_test"])
def test_the_folder_of_a_model_is_not_a_run(commands, mode: str) -> None:
    for run, way in (("runs/mine", "name its run, runs/mine,"), ("elsewhere", "name the folder of a run")):
        folder = Path(run) / "model"
        if run == "runs/mine":
            write_record(commands, Path(run))
            (Path(run) / "checkpoints").mkdir()
        folder.mkdir(parents=True)
        (folder / "model.safetensors").touch()
        (folder / "config.json").write_text('{"format": 2, "model": {}}')
        code, _, error = commands.train("--mode", mode, "--run-dir", str(folder))
        assert code == 2 and error.count("\n") == 1 and way in error and "is the folder of a model" in error


def test_resume_fix_takes_model_and_data_and_its_own_loss(commands) -> None:
    sick = Path("runs/mine")
    words = [
        "--data",
        "photos.zip",
        "--set",
        "model.latents=33",
        "--set",
        "data.augment.affine.rotate_degrees=5",
        "--batch-size",
        "5",
        "--lr",
        "0.5",
        "--seed",
        "4",
    ]
    earlier = write_record(commands, sick, *words).config
    code, _, error = commands.train("--mode", "resume_fix", "--run-dir", str(sick))
    assert (code, error) == (0, "")
    request = commands.request()
    config = request.run.config
    assert request.fix_from == sick
    assert request.run_dir == Path("runs/mine-fixed")
    assert config.model == earlier.model
    assert config.data == earlier.data
    assert config.data.augment.affine.rotate_degrees == 5
    assert request.run.names["augment"] == "none"
    assert config.seed == earlier.seed
    assert config.training.batch_size == earlier.training.batch_size
    assert config.training.optimizer == earlier.training.optimizer
    assert config.loss.kl.schedule.kind == "linear"
    assert config.loss.kl.schedule.start == 0
    assert config.loss.kl.schedule.warmup == 0.3
    assert request.run.origins["model.latents"].startswith("run runs/mine/config.json")
    assert request.run.names["mode"] == "resume_fix"


def test_resume_fix_starts_from_the_usual_run_and_obeys_flags(commands) -> None:
    write_record(commands, Path("runs/fast_high_quality"))
    Path("other.zip").touch()
    commands.train("--mode", "resume_fix", "--beta", "5", "--data", "other.zip", "--batch-size", "3")
    config = commands.request().run.config
    assert commands.request().run_dir == Path("runs/fast_high_quality-fixed")
    assert (config.loss.kl.weight, config.data.source, config.training.batch_size) == (5, "other.zip", 3)


def test_a_damaged_record_is_named_by_file_and_path(commands) -> None:
    write_record(commands, Path("runs/mine"))
    record = Path("runs/mine/config.json")
    record.write_text(record.read_text().replace('"latents": 256', '"latents": -1'))
    code, _, error = commands.train("--mode", "resume_fix", "--run-dir", "runs/mine")
    assert code == 2
    assert "run runs/mine/config.json: model.latents: should be greater than or equal to 1, got -1" in error


@pytest.mark.parametrize("words", [["train"], ["train", "--mode", "full_retrain"], ["train_unified"]])
def test_a_record_as_config_repeats_the_run_beside_it(commands, words: list[str]) -> None:
    earlier = write_record(commands, Path("runs/mine"), "--beta", "7", "--set", "training.optimizer.kind=sgd").config
    which, *more = words
    code, _, error = getattr(commands, which)(*more, "--config", "runs/mine/config.json")
    assert (code, error) == (0, "")
    assert commands.request().run.config == earlier
    assert commands.request().run_dir == Path("runs/mine-again")
