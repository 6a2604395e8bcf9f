"""Settings of earlier versions: renamed ones keep their values, and old records get what they leave out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unified_vae.cli.train import config_lines
from unified_vae.config.base import field_paths
from unified_vae.config.model import ConvConfig, ResidualConfig
from unified_vae.config.presets import PresetBook, from_command_line
from unified_vae.config.run import RunConfig
from unified_vae.config.upgrade import (
    MAX_PCA_SIDE,
    RENAMED,
    RENAMED_VALUES,
    missing_fields,
    new_path,
    upgrade,
    upgrade_part,
)
from unified_vae.core.errors import ConfigError
from unified_vae.core.linear_vae import LARGEST_SIDE

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "config" / "config_unified.json"
OLD_RUN = ROOT / "tests/golden/fixtures/0.1.0-first-format/run/checkpoints/step-000000004/state.json"


def load_with(tmp_path: Path, content: object) -> PresetBook:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return PresetBook.load(extra=path, shipped=SHIPPED)


def test_old_names_are_gone_and_new_ones_exist() -> None:
    known = field_paths(RunConfig)
    assert not set(RENAMED) & set(known)
    assert {new_path(path) for path in RENAMED} | set(RENAMED_VALUES) <= set(known)


def test_a_record_of_before_keeps_its_values() -> None:
    record = json.loads(OLD_RUN.read_text(encoding="utf-8"))["record"]["config"]
    config = RunConfig.model_validate(upgrade(record))
    assert config.training.gradient_accumulation_steps == record["training"]["accumulate"]
    assert config.training.max_grad_norm == record["training"]["clip_norm"]
    assert config.training.recovery.grad_spike_ratio == record["training"]["recovery"]["spike"]
    assert config.training.lr_schedule.min_lr_ratio == record["training"]["lr_schedule"]["final"]
    assert config.model.pca_init == record["model"]["pca_start"]
    assert config.loss.kl.reduction == record["loss"]["kl"]["convention"]
    assert upgrade(config.model_dump()) == config.model_dump()


def test_a_file_of_before_loads_and_tells_the_old_names(tmp_path: Path) -> None:
    mine = {
        "data": {"background": "grey"},
        "training": {"accumulate": 2},
        "loss": {"kl": {"constraint": {"kind": "capacity", "nats": 9.0}}},
        "model_presets": {"m": {"family": "residual", "detail_size": "picture"}},
        "modes": {
            "mine": {"loss": "mse_l1", "training": "quick_test", "model": "m", "dataset": "tiny"}
            | {"set": {"training.clip_norm": 3.0}}
        },
    }
    book = load_with(tmp_path, mine)
    run = book.compose(book.mode("mine").presets, from_command_line({}, []), mode=book.mode("mine"))
    assert (run.config.training.gradient_accumulation_steps, run.config.training.max_grad_norm) == (2, 3.0)
    assert (run.config.data.background, run.config.model.refine_resolution) == ("gray", "pca")
    assert run.config.loss.kl.constraint.capacity == 9.0
    assert run.origins["training.gradient_accumulation_steps"].endswith("mine.json, as training.accumulate")
    assert run.origins["training.max_grad_norm"].endswith(", as training.clip_norm")
    assert run.origins["data.background"].endswith("mine.json")


def test_settings_that_are_gone_are_ignored_with_a_note(tmp_path: Path) -> None:
    mine = {
        "data": {"workers": 4, "max_images": 7},
        "dataset_presets": {"d": {"workers": 0, "max_images": 9}, "e": {"_extends": "d", "workers": 2}},
        "modes": {
            "mine": {"loss": "mse_l1", "training": "quick_test", "model": "small", "dataset": "e"}
            | {"set": {"data.workers": 3}}
        },
    }
    book = load_with(tmp_path, mine)
    run = book.compose(book.mode("mine").presets, from_command_line({}, []), mode=book.mode("mine"))
    assert run.config.data.max_images == 7 and "data.workers" not in run.origins
    assert len(run.notes) == 3 and all("data.workers is ignored: loader processes are gone" in n for n in run.notes)
    assert "note: dataset preset e" in "\n".join(config_lines(run))
    assert book.compose({"dataset": "d"}, from_command_line({}, [])).notes == run.notes[2:]
    assert load_with(tmp_path, {"data": {"workers": 0}}).compose({}, from_command_line({}, [])).notes == []
    assert "workers" not in upgrade_part("data", {"workers": 4, "max_images": 7})
    with pytest.raises(ConfigError, match=r"--set data.workers=4: loader processes are gone, since .* leave"):
        from_command_line({}, ["data.workers=4"])


def test_the_flow_is_refused_after_set_and_replaced_in_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"density.fit=flow: the coupling flow .* is gone; use .*=auto"):
        from_command_line({}, ["density.fit=flow"])
    mine = {"density": {"fit": "flow", "flow_steps": 20}}
    run = load_with(tmp_path, mine).compose({}, from_command_line({}, []))
    assert run.config.density.fit == "auto" and len(run.notes) == 2
    assert upgrade_part("density", mine["density"]) == {"fit": "auto"}


def test_an_old_name_beside_the_new_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mine.json: training.clip_norm is now called max_grad_norm, and both"):
        load_with(tmp_path, {"training": {"clip_norm": 1.0, "max_grad_norm": 2.0}})


@pytest.mark.parametrize("path", RENAMED)
def test_an_old_name_after_set_names_the_new_one(path: str) -> None:
    with pytest.raises(ConfigError, match=f"is now called {new_path(path)}; write --set {new_path(path)}=VALUE"):
        from_command_line({}, [f"{path}=1"])


def test_the_side_of_pca_reconstructions_is_that_of_components():
    assert MAX_PCA_SIDE == LARGEST_SIDE


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"image_size": 64}, "pca"),
        ({"image_size": 65}, "full"),
        ({"image_size": 128, "pca_init": False}, "pca"),
        ({"image_size": 128, "pca_init": True}, "full"),
    ],
)
def test_old_models_refine_at_full_resolution(settings, size):
    assert missing_fields({"family": "residual", **settings})["refine_resolution"] == size


def test_files_of_today_leave_nothing_out():
    for model in (ResidualConfig().model_dump(), ConvConfig().model_dump(), None):
        assert missing_fields(model) == {}
