"""Checkpoints: exact round trip, what is kept, what a manifest may say. Damage and kills: tests/faults/."""

import json

import pytest
import torch

from unified_vae.core import checkpoint_format, retention
from unified_vae.core.checkpoint_format import MANIFEST, Checkpoint, seal
from unified_vae.core.errors import CheckpointError
from unified_vae.core.files import STAGE_PREFIX


def content(step, size=64):
    generator = torch.Generator().manual_seed(step)
    tensors = {"weight": torch.randn(size, generator=generator), "count": torch.tensor(step)}
    return Checkpoint(step, {"model": tensors, "ema": {"weight": torch.ones(3)}}, {"x": 0.1 + step, "list": [1, None]})


def same(first, second):
    assert first.step == second.step and first.state == second.state and first.groups.keys() == second.groups.keys()
    for name, tensors in first.groups.items():
        assert all(torch.equal(value, second.groups[name][key]) for key, value in tensors.items())
    return True


def test_round_trip_is_exact_and_leaves_nothing_else(tmp_path):
    checkpoint_format.save(tmp_path, content(12))
    assert same(checkpoint_format.load(tmp_path, 12), content(12))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000012"]


def test_saving_the_same_step_again_replaces_it(tmp_path):
    checkpoint_format.save(tmp_path, content(12))
    changed = Checkpoint(12, content(12).groups, {"x": "new"})
    checkpoint_format.save(tmp_path, changed)
    assert checkpoint_format.load(tmp_path, 12).state == {"x": "new"}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_crash_while_a_step_is_replaced_loses_nothing(tmp_path):
    folder = checkpoint_format.save(tmp_path, content(5))
    folder.rename(tmp_path / f"{STAGE_PREFIX}old-step-000000005-123")
    (tmp_path / f"{STAGE_PREFIX}step-000000005-123").mkdir()
    retention.sweep(tmp_path)
    assert same(retention.newest_good(tmp_path, print), content(5))
    assert len(list(tmp_path.iterdir())) == 1


def test_a_manifest_cannot_point_outside_its_folder(tmp_path):
    folder = checkpoint_format.save(tmp_path, content(3))
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"]["../../secret"] = manifest["files"]["state.json"]
    del manifest["seal"]
    manifest["seal"] = seal(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    with pytest.raises(CheckpointError, match="does not describe"):
        checkpoint_format.load(tmp_path, 3)


def test_pruning_keeps_the_newest_and_the_chosen(tmp_path):
    for step in range(1, 8):
        checkpoint_format.save(tmp_path, content(step))
    retention.prune(tmp_path, keep_last=2, keep=lambda step: step == 3)
    assert retention.saved_steps(tmp_path) == [7, 6, 3]
    assert len(list(tmp_path.iterdir())) == 3
