"""Truncated, zeroed, emptied, flipped: every damage is found and named, and the checkpoint before is used."""

import json
import os
import random
import time

import pytest
import torch

from tests.faults.fault_rows import report
from tests.helpers.runs import Recorder, request, train, write_images
from unified_vae.core import checkpoint_format, retention
from unified_vae.core.checkpoint_format import MANIFEST, Checkpoint, folder_name
from unified_vae.core.errors import CheckpointError

CUTS, CUTS_LONG = 40, 200
FLIPS, FLIPS_LONG = 150, 1000
NEWEST, BEFORE = 5, 3


def content(step, size=64):
    generator = torch.Generator().manual_seed(step)
    tensors = {"weight": torch.randn(size, generator=generator), "count": torch.tensor(step)}
    state = {"x": 0.1 + step, "list": [1, None], "words": "state of a run"}
    return Checkpoint(step, {"model": tensors, "ema": {"weight": torch.ones(3)}}, state)


def same(first, second):
    assert first.step == second.step and first.state == second.state and first.groups.keys() == second.groups.keys()
    for name, tensors in first.groups.items():
        assert tensors.keys() == second.groups[name].keys()
        assert all(torch.equal(value, second.groups[name][key]) for key, value in tensors.items())
    return True


@pytest.fixture
def two(tmp_path):
    """A folder with two checkpoints; the files of the newer one."""
    for step in (BEFORE, NEWEST):
        checkpoint_format.save(tmp_path, content(step))
    files = sorted((tmp_path / folder_name(NEWEST)).iterdir())
    assert len(files) == 4
    return tmp_path, files


def is_passed_over(root, path, bad):
    """Damage a file; is it found, named, and the checkpoint before used? The file is as before afterwards."""
    good, said = path.read_bytes(), []
    path.write_bytes(bad)
    result = retention.newest_good(root, said.append, set_aside=False)
    path.write_bytes(good)
    return result.step == BEFORE and len(said) == 1 and str(path) in said[0] and same(result, content(BEFORE))


def cuts(path, count):
    """A file's content cut at so many lengths."""
    good = path.read_bytes()
    lengths = {place * len(good) // count for place in range(count)} | {0, 1, 7, 8, 9, len(good) - 1}
    return [good[:length] for length in sorted(lengths)]


def find_cuts(two, count):
    root, files = two
    damaged = [(path, bad) for path in files for bad in cuts(path, -(-count // len(files)))]
    missed = [path.name for path, bad in damaged if not is_passed_over(root, path, bad)]
    assert not missed
    return len(damaged)


def find_flips(two, count, seed=0):
    """Single bits over all files, as likely in each of them: by size nearly all would fall into the tensors."""
    root, files = two
    rng, missed = random.Random(seed), []
    for number in range(count):
        path = files[number % len(files)]
        bad = bytearray(path.read_bytes())
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        if not is_passed_over(root, path, bytes(bad)):
            missed.append((path.name, number))
    assert not missed


def test_cut_files(two):
    assert find_cuts(two, CUTS) >= CUTS


def test_flipped_bits(two):
    find_flips(two, FLIPS)


def test_every_single_bit_of_the_manifest(two):
    """Also those in its white space: a manifest is its very bytes."""
    root, _ = two
    path = root / folder_name(NEWEST) / MANIFEST
    good = path.read_bytes()
    for place in range(0, 8 * len(good), 5):
        bad = bytearray(good)
        bad[place // 8] ^= 1 << place % 8
        assert is_passed_over(root, path, bytes(bad)), place


@pytest.mark.long
def test_two_hundred_cuts_and_a_thousand_flips(two):
    number = find_cuts(two, CUTS_LONG)
    find_flips(two, FLIPS_LONG)
    report(
        fault=f"newest checkpoint damaged: {number} truncations, {FLIPS_LONG} bit flips",
        target="detected, file named, previous one used",
        result=f"{number} of {number} and {FLIPS_LONG} of {FLIPS_LONG}",
    )


@pytest.mark.parametrize("kind", ["empty", "zeros", "longer", "missing", "folder", "pipe"])
def test_other_damage(two, kind):
    root, files = two
    for path in files:
        good, said = path.read_bytes(), []
        path.unlink()
        match kind:
            case "empty" | "zeros" | "longer":
                path.write_bytes({"empty": b"", "zeros": bytes(len(good)), "longer": good + b"\0"}[kind])
            case "folder":
                path.mkdir()
            case "pipe":
                os.mkfifo(path)
        assert retention.newest_good(root, said.append, set_aside=False).step == BEFORE
        assert len(said) == 1 and str(path) in said[0]
        if path.exists():
            path.rmdir() if kind == "folder" else path.unlink()
        path.write_bytes(good)
    assert same(retention.newest_good(root, print), content(NEWEST))


def test_a_damaged_checkpoint_is_set_aside_until_replaced(two):
    root, files = two
    files[0].write_bytes(b"")
    assert retention.newest_good(root, print).step == BEFORE
    assert retention.saved_steps(root) == [BEFORE] and (root / "damaged-step-000000005").is_dir()
    checkpoint_format.save(root, content(4))
    retention.prune(root, 2, lambda step: False)
    assert (root / "damaged-step-000000005").exists(), "kept as long as nothing newer has been saved"
    checkpoint_format.save(root, content(6))
    retention.prune(root, 2, lambda step: False)
    assert sorted(path.name for path in root.iterdir()) == ["step-000000004", "step-000000006"]


def test_all_damaged_is_an_error_and_none_is_a_fresh_start(two, tmp_path):
    root, _ = two
    assert retention.newest_good(tmp_path / "absent", print) is None
    said = []
    for step in (BEFORE, NEWEST):
        (root / folder_name(step) / "state.json").write_bytes(b"{}")
    with pytest.raises(CheckpointError, match="--no-resume") as problem:
        retention.newest_good(root, said.append)
    assert problem.value.exit_code == 3 and len(said) == 2
    assert retention.saved_steps(root) == [NEWEST, BEFORE], "they are left where they are"


def test_the_newest_has_the_most_steps_whatever_the_clock_says(two, monkeypatch):
    """An hour ahead, an hour back, and the files' times the other way round."""
    root, _ = two
    for offset in range(-5, 6):
        for step, shift in ((BEFORE, 3600 * offset), (NEWEST, -3600 * offset)):
            for path in (root / folder_name(step), *(root / folder_name(step)).iterdir()):
                os.utime(path, (time.time() + shift,) * 2)
        monkeypatch.setattr(time, "time", lambda offset=offset: 1e9 * offset)
        assert retention.newest_good(root, print).step == NEWEST
        monkeypatch.undo()


def test_a_renamed_checkpoint_is_not_taken_for_a_later_step(two):
    root, _ = two
    (root / folder_name(BEFORE)).rename(root / folder_name(99))
    said = []
    assert retention.newest_good(root, said.append).step == NEWEST
    assert "step 3, its folder of step 99" in said[0]


def test_a_run_resumes_from_the_previous_checkpoint_bit_exactly(tmp_path):
    torch.set_num_threads(1)
    source = write_images(tmp_path / "images.npy")
    run_request = request(tmp_path / "run", source, {"training": {"epochs": 2}})
    train(run_request, [Recorder()])
    expected = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    newest = max((tmp_path / "run" / "checkpoints").glob("step-*"))
    (newest / "ema.safetensors").write_bytes(b"")
    again = Recorder()
    assert train(run_request, [again]).outcome == "finished"
    assert sum(str(newest / "ema.safetensors") in notice for notice in again.notices) == 1
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == expected
    record = json.loads((newest / MANIFEST).read_text())
    assert record["written_by"].startswith("unified-vae ")
