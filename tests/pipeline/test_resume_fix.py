"""`resume_fix` cures a run that was made to collapse, and leaves that run as it was."""

import json
from pathlib import Path

import pytest
import torch

from tests.helpers.runs import Recorder, request, train, write_images
from unified_vae.analysis.diagnosis import Diagnosis
from unified_vae.config.presets import PresetBook, from_command_line
from unified_vae.config.schedule import warmup_end
from unified_vae.core.errors import CheckpointError, ConfigError
from unified_vae.pipeline.plan import plan_mode

SHIPPED = Path(__file__).resolve().parents[2] / "config" / "config_unified.json"
COLLAPSE = {
    "training": {
        "epochs": 20,
        "validate_every_epochs": 20,
        "optimizer": {"kind": "adamw", "lr": 1e-2},
        "checkpoint": {"every_minutes": 100.0},
    },
    "loss": {"kl": {"weight": 1e5, "schedule": {"kind": "constant"}}},
}


@pytest.fixture(scope="module")
def collapsed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fix")
    source = write_images(folder / "images.npy", count=80)
    torch.set_num_threads(1)
    train(request(folder / "sick", source, COLLAPSE), [Recorder()])
    return folder / "sick"


def cure(sick, *assignments):
    words = ["training.epochs=30", "training.validate_every_epochs=30", "training.optimizer.lr=3e-3", *assignments]
    plan = plan_mode(PresetBook.load(shipped=SHIPPED), "resume_fix", from_command_line({}, words), sick)
    recorder = Recorder()
    train(plan, [recorder])
    return recorder, plan


def test_a_collapsed_run_recovers(collapsed):
    before_files = {path: path.read_bytes() for path in collapsed.rglob("*") if path.is_file()}
    recorder, plan = cure(collapsed)
    before = Diagnosis.read(plan.run_dir / "before.json")
    assert before.verdict == "posterior collapse" and before.rate < 0.1
    assert any("posterior collapse" in notice and "fresh weights" in notice for notice in recorder.notices)
    last = recorder.validations[-1].values
    assert last["active_units"] > before.latents / 2
    assert last["psnr"] > before.psnr + 1
    lines = recorder.finished.advice
    assert any(line.startswith("before: posterior collapse") for line in lines)
    assert any(line.startswith("after:  not collapsed") for line in lines)
    assert {path: path.read_bytes() for path in collapsed.rglob("*") if path.is_file()} == before_files


def test_it_is_not_the_mode_that_made_the_run(collapsed):
    """Beta restarts from 0 with its own warm-up, the rate is the run's own, the sharp terms weigh more."""
    book = PresetBook.load(shipped=SHIPPED)
    fix = plan_mode(book, "resume_fix", from_command_line({}, []), collapsed).run.config
    usual = plan_mode(book, "fast_high_quality", from_command_line({}, []), None).run.config
    made = json.loads((collapsed / "config.json").read_text())["requested"]
    assert fix.model.model_dump() == made["model"] and fix.data.source == made["data"]["source"]
    assert warmup_end(fix.loss.kl.schedule) > warmup_end(usual.loss.kl.schedule) and fix.loss.kl.schedule.start == 0
    assert fix.training.optimizer.model_dump() == made["training"]["optimizer"]
    assert fix.training.lr_schedule.warmup > 0
    assert fix.loss.perceptual.weight > usual.loss.perceptual.weight


def test_a_constraint_of_the_sick_run_is_not_taken_over(collapsed, tmp_path):
    record = json.loads((collapsed / "config.json").read_text())
    for part in ("config", "requested"):
        record[part]["loss"]["kl"]["constraint"] = {
            "kind": "capacity",
            "capacity": 1.0,
            "initial_capacity": 0.0,
            "warmup": 0.5,
        }
    (tmp_path / "config.json").write_text(json.dumps(record))
    book = PresetBook.load(shipped=SHIPPED)
    for words, kind in (([], "none"), (["loss.kl.constraint.kind=free_bits"], "free_bits")):
        plan = plan_mode(book, "resume_fix", from_command_line({}, words), tmp_path)
        assert plan.run.config.loss.kl.constraint.kind == kind


def test_no_run_to_fix_says_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match="--run-dir"):
        cure(tmp_path / "absent")


def test_a_run_without_checkpoints_cannot_be_fixed(collapsed, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_bytes((collapsed / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match="nothing to fix"):
        cure(empty)
