"""Checkpoints: exact round trip, every damage found, no half-written one ever trusted."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from unified_vae.core.errors import CheckpointError
from unified_vae.training import checkpoint
from unified_vae.training.checkpoint import MANIFEST, Checkpoint


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
    checkpoint.save(tmp_path, content(12))
    assert same(checkpoint.load(tmp_path, 12), content(12))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000012"]


def test_saving_the_same_step_again_replaces_it(tmp_path):
    checkpoint.save(tmp_path, content(12))
    changed = Checkpoint(12, content(12).groups, {"x": "new"})
    checkpoint.save(tmp_path, changed)
    assert checkpoint.load(tmp_path, 12).state == {"x": "new"}
    assert len(list(tmp_path.iterdir())) == 1


def flipped(data, position, bit):
    return data[:position] + bytes([data[position] ^ (1 << bit)]) + data[position + 1 :]


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "state.json", MANIFEST])
def test_damage_of_any_file_is_found_and_the_one_before_is_used(tmp_path, name):
    for step in (3, 5):
        checkpoint.save(tmp_path, content(step))
    path = tmp_path / "step-000000005" / name
    good = path.read_bytes()
    places = [position * len(good) // 23 for position in range(23)]
    damaged = [good[:place] for place in places] + [flipped(good, place, place % 8) for place in places] + [b""]
    for bad in damaged:
        path.write_bytes(bad)
        said = []
        found = checkpoint.newest_good(tmp_path, said.append)
        if found.step == 5:  # a flip in the manifest's white space changes nothing that is read
            assert name == MANIFEST and json.loads(bad) == json.loads(good)
            continue
        assert same(found, content(3)) and len(said) == 1 and name in said[0]
        assert checkpoint.saved_steps(tmp_path) == [3], "a damaged one is set aside"
        (tmp_path / "damaged-step-000000005").rename(tmp_path / "step-000000005")
    path.unlink()
    assert checkpoint.newest_good(tmp_path, said.append).step == 3
    checkpoint.save(tmp_path, content(4))
    checkpoint.prune(tmp_path, 2, lambda step: False)
    assert (tmp_path / "damaged-step-000000005").exists(), "kept as long as nothing newer has been saved"
    checkpoint.save(tmp_path, content(6))
    checkpoint.prune(tmp_path, 2, lambda step: False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000004", "step-000000006"]


def test_a_crash_while_a_step_is_replaced_loses_nothing(tmp_path):
    folder = checkpoint.save(tmp_path, content(5))
    folder.rename(tmp_path / f"{checkpoint.STAGE_PREFIX}old-step-000000005-123")
    (tmp_path / f"{checkpoint.STAGE_PREFIX}step-000000005-123").mkdir()
    checkpoint.sweep(tmp_path)
    assert same(checkpoint.newest_good(tmp_path, print), content(5))
    assert len(list(tmp_path.iterdir())) == 1


def test_all_damaged_is_an_error_and_none_is_a_fresh_start(tmp_path):
    assert checkpoint.newest_good(tmp_path / "absent", print) is None
    checkpoint.save(tmp_path, content(3))
    (tmp_path / "step-000000003" / MANIFEST).write_text("{}")
    with pytest.raises(CheckpointError, match="--no-resume"):
        checkpoint.newest_good(tmp_path, lambda text: None)


def test_a_manifest_cannot_point_outside_its_folder(tmp_path):
    folder = checkpoint.save(tmp_path, content(3))
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"]["../../secret"] = manifest["files"]["state.json"]
    del manifest["seal"]
    manifest["seal"] = checkpoint._seal(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="does not describe"):
        checkpoint.verify(folder)


def test_pruning_keeps_the_newest_and_the_chosen(tmp_path):
    for step in range(1, 8):
        checkpoint.save(tmp_path, content(step))
    checkpoint.prune(tmp_path, keep_last=2, keep=lambda step: step == 3)
    assert checkpoint.saved_steps(tmp_path) == [7, 6, 3]
    assert len(list(tmp_path.iterdir())) == 3


def test_the_disk_is_asked_in_the_right_order(tmp_path, monkeypatch):
    """Power loss: each file and the folder reach the disk before the name, and the name before anything is pruned."""
    calls = []
    real_fsync, real_rename = os.fsync, Path.rename

    def fsync(descriptor):
        calls.append(("fsync", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        real_fsync(descriptor)

    def rename(self, target):
        calls.append(("rename", Path(target).name))
        return real_rename(self, target)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to see which file is synced")
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    checkpoint.save(tmp_path, content(1))
    names = [name for _, name in calls]
    renamed = calls.index(("rename", "step-000000001"))
    for file in ("model.safetensors", "ema.safetensors", "state.json"):
        assert names.index(file) < names.index(MANIFEST) < renamed
    assert calls[renamed - 1][0] == "fsync" and calls[renamed - 1][1].startswith(checkpoint.STAGE_PREFIX)
    assert calls[renamed + 1] == ("fsync", tmp_path.name)


def _save_for_ever(root):
    for step in range(1, 100_000):
        checkpoint.save(root, content(step, size=500_000))
        checkpoint.prune(root, 2, lambda step: False)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL") or not hasattr(os, "fork"), reason="needs SIGKILL and fork")
def test_killed_while_saving_the_newest_is_always_good(tmp_path):
    context = multiprocessing.get_context("fork")
    for life in range(6):
        process = context.Process(target=_save_for_ever, args=(tmp_path,))
        process.start()
        time.sleep(0.05 + 0.037 * life)
        process.kill()
        process.join()
        checkpoint.sweep(tmp_path)
        assert all(path.name.startswith("step-") for path in tmp_path.iterdir())
        for step in checkpoint.saved_steps(tmp_path):
            assert same(checkpoint.load(tmp_path, step), content(step, size=500_000))
    assert checkpoint.saved_steps(tmp_path), "no life was long enough to save once"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a POSIX file-size limit")
def test_a_full_disk_leaves_no_partial_checkpoint(tmp_path):
    import resource

    checkpoint.save(tmp_path, content(1))
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            checkpoint.save(tmp_path, content(2, size=500_000))
        except Exception:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]
    assert same(checkpoint.load(tmp_path, 1), content(1))
