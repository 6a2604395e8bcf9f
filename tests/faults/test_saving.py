"""Saving beside the training: the copy is of one step, the order survives a power cut, kills leave nothing half."""

import os
import random
import signal
import statistics
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.faults.fault_rows import report
from tests.helpers.faults import SlowDisk, injected
from tests.helpers.runs import Recorder, leftovers, outcome, request, server, train
from unified_vae.config.optim import AdamWConfig
from unified_vae.config.training import CheckpointConfig
from unified_vae.core import checkpoint_format, retention
from unified_vae.core.checkpoint_format import MANIFEST
from unified_vae.core.errors import EnvironmentProblem
from unified_vae.core.events import Observer
from unified_vae.optim.build import build_optimizers
from unified_vae.training import validation
from unified_vae.training.checkpointer import Checkpointer, OptimizerState
from unified_vae.training.distributed import Runtime
from unified_vae.training.state import TrainState

KILLS, KILLS_LONG = 6, 1000
MEGABYTES, MEGABYTES_LONG = 8, 40
INTERRUPTIONS, INTERRUPTIONS_LONG = 3, 30


class Ear(Observer):
    def __init__(self):
        self.notices, self.saved = [], []

    def notice(self, text):
        self.notices.append(text)

    def checkpoint_saved(self, event):
        self.saved.append(event)


class Run:
    """Something to save: weights, averaged weights and moments that all hold the number of the step."""

    def __init__(self, root, megabytes=0.1, keep_last=2):
        self.model, averaged = nn.Linear(int(megabytes * 2**16), 1), nn.Linear(int(megabytes * 2**16), 1)
        self.optimizer = build_optimizers(AdamWConfig(), self.model, fused=True)["main"]
        for parameter in self.model.parameters():
            moments = {slot: torch.zeros_like(parameter) for slot in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = {"step": torch.tensor(0.0), **moments}
        self.averaged, self.state, self.ear = averaged, TrainState(), Ear()
        self.checkpointer = Checkpointer(
            root,
            CheckpointConfig(keep_last=keep_last),
            {
                "model": self.model,
                "ema": averaged,
                "objective": nn.Identity(),
                "optimizer": OptimizerState([self.optimizer], self.model),
            },
            steps_per_epoch=10,
            runtime=Runtime(torch.device("cpu"), torch.float32),
            observer=self.ear,
            record={"about": "it"},
        )
        self.checkpointer.prepare()

    @torch.no_grad()
    def step(self):
        self.state.step += 1
        slots = [value for held in self.optimizer.state.values() for value in held.values()]
        for tensor in (*self.model.parameters(), *self.averaged.parameters(), *slots):
            tensor.fill_(self.state.step)

    def step_and_save(self):
        self.step()
        self.checkpointer.report()
        self.checkpointer.save(self.state)


def is_of_one_step(root, step):
    """Whether a checkpoint loads, and all its tensors are those of its step."""
    result = checkpoint_format.load(root, step)
    assert set(result.groups) == {"model", "ema", "objective", "optimizer"}
    return result.state["train"]["step"] == step and all(
        bool((value == step).all()) for tensors in result.groups.values() for value in tensors.values()
    )


def test_after_restore_receives_the_record(tmp_path):
    run, records = Run(tmp_path / "run"), []
    run.checkpointer.after_restore = records.append
    run.step_and_save()
    run.step_and_save()
    assert run.checkpointer.rollback(1).step == 1
    assert records == [{"about": "it"}]


# --- order and completeness -----------------------------------------------------------------------------------


def test_saves_sync_in_an_order_that_survives_a_power_cut(tmp_path, monkeypatch):
    """Each file, then the manifest, then the folder reach the disk before the name; the name before a deletion."""
    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to see which file is synced")
    calls, fsync, rename = [], os.fsync, os.rename

    def noted_fsync(descriptor):
        calls.append(f"fsync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def noted_rename(source, target):
        calls.append(f"rename {Path(target).name}")
        rename(source, target)

    run = Run(tmp_path / "run")
    for _ in range(2):
        run.step_and_save()
    run.checkpointer.wait()
    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted_rename)
    run.step()
    run.checkpointer.save(run.state, before_write=lambda: calls.append("metrics"))
    run.checkpointer.wait()
    stage = next(call for call in calls if call.startswith("fsync .tmp-step-000000003"))
    files = [f"{name}.safetensors" for name in ("model", "ema", "objective", "optimizer")] + ["state.json"]
    assert sorted(calls[1:6]) == sorted(f"fsync {name}" for name in files)
    publishing = [f"fsync {MANIFEST}", stage, "rename step-000000003", "fsync run", "rename .tmp-step-000000001-pruned"]
    assert calls[:1] + calls[6:] == ["metrics", *publishing]


def save_until_killed(root, megabytes):
    run = Run(root, megabytes)
    run.state.step = max(retention.saved_steps(root), default=0)
    while True:
        run.step_and_save()


def kill_while_saving(root, kills, megabytes, seed=0):
    """Lives that do nothing but save, each ended at a random moment; how many checkpoints were looked at."""
    rng, looked_at = random.Random(seed), 0
    root.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(kills):
        process = server().Process(target=save_until_killed, args=(root, megabytes))
        process.start()
        before = set(retention.saved_steps(root))
        while process.is_alive() and set(retention.saved_steps(root)) == before:
            time.sleep(0.01)  # until it saves
        time.sleep(rng.uniform(0, 0.015 * megabytes))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        retention.sweep(root)
        steps = retention.saved_steps(root)
        assert 1 <= len(steps) <= 3 and len(list(root.iterdir())) == len(steps), "something was left over"
        assert all(is_of_one_step(root, step) for step in steps)
        looked_at += len(steps)
    return looked_at


@pytest.fixture
def another_disk(tmp_path):
    """A folder on another file system than the one of temporary files, where there is one."""
    shared = Path("/dev/shm")
    if not shared.is_dir():
        yield tmp_path
        return
    import tempfile

    with tempfile.TemporaryDirectory(dir=shared) as name:
        yield Path(name)


needs_kill = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL and a fork server")


@needs_kill
def test_killed_while_saving(tmp_path, another_disk):
    kill_while_saving(tmp_path / "run" / "checkpoints", KILLS // 2, MEGABYTES)
    kill_while_saving(another_disk / "run" / "checkpoints", KILLS // 2, MEGABYTES)


@needs_kill
@pytest.mark.long
def test_killed_a_thousand_times_while_saving(tmp_path, another_disk):
    looked_at = kill_while_saving(tmp_path / "run" / "checkpoints", KILLS_LONG // 2, MEGABYTES_LONG)
    looked_at += kill_while_saving(another_disk / "run" / "checkpoints", KILLS_LONG // 2, MEGABYTES_LONG, seed=1)
    report(
        fault=f"SIGKILL inside the save of {MEGABYTES_LONG} MB, {KILLS_LONG} times, on two file systems",
        target="newest checkpoint verifies, no leftovers",
        result=f"{looked_at:,} checkpoints read: 0 damaged, 0 of mixed steps, 0 leftovers",
    )


# --- beside the training --------------------------------------------------------------------------------------


def test_a_save_is_of_its_step_while_training_continues(tmp_path, monkeypatch):
    written, may_write = threading.Event(), threading.Event()
    save = checkpoint_format.save

    def slowly(root, content):
        may_write.wait(30)
        path = save(root, content)
        written.set()
        return path

    monkeypatch.setattr(checkpoint_format, "save", slowly)
    run = Run(tmp_path / "run")
    run.step_and_save()
    for _ in range(5):
        run.step()
        run.checkpointer.report()
    assert not written.is_set() and run.ear.saved == []
    may_write.set()
    run.step_and_save()  # waits for the first: never two at once
    assert written.is_set() and [event.step for event in run.ear.saved] == [1]
    run.checkpointer.wait()
    assert all(is_of_one_step(tmp_path / "run", step) for step in (1, 7))


def test_a_failed_save_is_reported_and_keeps_the_best_weights(tmp_path):
    root = tmp_path / "run"
    run = Run(root)
    run.step_and_save()
    run.checkpointer.wait()
    root.rename(tmp_path / "away")
    run.step()
    run.state.best_step = 2
    run.checkpointer.save(run.state)
    deadline = time.monotonic() + 20
    while not run.ear.notices and time.monotonic() < deadline:
        run.checkpointer.report()
    assert "step 2 could not be saved" in run.ear.notices[0] and str(root) in run.ear.notices[0]
    assert run.checkpointer.best_unsaved(2).step == 2 and run.checkpointer.best_unsaved(1) is None
    run.step_and_save()
    run.checkpointer.wait()
    assert len(run.ear.notices) == 2 and run.checkpointer.best_unsaved(2).step == 2
    with pytest.raises(EnvironmentProblem, match="then run the same command") as problem:
        run.checkpointer.raise_if_unsaved()
    assert problem.value.exit_code == 3
    (tmp_path / "away").rename(root)
    run.step_and_save()
    run.checkpointer.wait()
    run.checkpointer.raise_if_unsaved()
    assert retention.saved_steps(root) == [4, 2] and all(is_of_one_step(root, step) for step in (4, 2))
    assert run.checkpointer.best_unsaved(2) is None


def test_an_error_of_ours_in_the_thread_is_not_lost(tmp_path, monkeypatch):
    run = Run(tmp_path / "run")
    monkeypatch.setattr(checkpoint_format, "save", lambda *_: 1 / 0)
    run.step_and_save()
    with pytest.raises(ZeroDivisionError):
        run.checkpointer.wait()


def test_a_failure_before_the_write_stops_the_save(tmp_path):
    run = Run(tmp_path / "run")

    def full():
        raise OSError(28, "No space left on device", "metrics.jsonl")

    run.step()
    run.checkpointer.save(run.state, before_write=full)
    run.checkpointer.wait()
    assert "metrics.jsonl cannot be written (No space left on device)" in run.ear.notices[0]
    assert retention.saved_steps(tmp_path / "run") == []


def stalls(root, megabytes, saves=6):
    """Milliseconds that training waits for a save, and that writing it takes: medians."""
    run = Run(root, megabytes)
    for _ in range(saves):
        run.step_and_save()
        run.checkpointer.wait()
    saves = run.ear.saved[1:]
    return [1000 * statistics.median(getattr(event, name) for event in saves) for name in ("stalled", "seconds")]


def test_training_waits_only_for_the_copy(tmp_path):
    with injected(SlowDisk(0.05)):  # so that writing takes long, whatever the disk
        stalled, writing = stalls(tmp_path / "run", MEGABYTES, saves=4)
    assert writing > 250 and stalled < writing / 2


@pytest.mark.long
def test_the_stall_of_forty_megabytes(tmp_path):
    torch.set_num_threads(1)
    stalled, writing = stalls(tmp_path / "run", MEGABYTES_LONG, saves=12)
    assert stalled < writing / 2
    report(
        fault=f"saving {MEGABYTES_LONG} MB during training",
        target="no noticeable stall",
        result=f"training waits {stalled:.0f} ms for the copy; writing takes {writing:.0f} ms in the background",
    )


# --- interrupted validation -----------------------------------------------------------------------------------


class Broken(Exception):
    pass


def interrupt(kind):
    if kind == "SIGTERM":
        os.kill(os.getpid(), signal.SIGTERM)
    else:
        raise {"KeyboardInterrupt": KeyboardInterrupt, "raise": Broken}[kind]


def interrupt_validations(source, tmp_path, count, monkeypatch):
    """A run that is interrupted in its validations again and again; how often it was."""
    torch.set_num_threads(1)
    run_request = request(tmp_path / "run", source, {"training": {"epochs": count // 3 + 2}})
    real, kinds = validation.validation_batches, ["raise", "KeyboardInterrupt", "SIGTERM"]
    interrupted = 0

    def interrupting(*args, **settings):
        for batch in real(*args, **settings):
            if armed:
                interrupt(armed.pop())
            yield batch

    while True:
        armed = [kinds[interrupted % 3]] if interrupted < count else []
        with monkeypatch.context() as patch:
            patch.setattr(validation, "validation_batches", interrupting)
            try:
                finished = train(run_request, [Recorder()])
            except (Broken, KeyboardInterrupt):
                interrupted += 1
                continue
        if finished.outcome == "finished":
            break
        interrupted += 1
        assert finished.exit_code == 143
    return interrupted


def validations_are_interrupted(source, tmp_path, count, monkeypatch):
    reference = request(tmp_path / "reference", source, {"training": {"epochs": count // 3 + 2}})
    train(reference, [Recorder()])
    assert interrupt_validations(source, tmp_path, count, monkeypatch) >= count
    assert outcome(tmp_path / "run") == outcome(tmp_path / "reference")
    assert leftovers(tmp_path / "run") == []
    result = retention.newest_good(tmp_path / "run" / "checkpoints", print)
    raw, averaged = result.tensors("model"), result.tensors("ema")
    assert any(not torch.equal(raw[name], averaged[name]) for name in raw)


def test_interrupted_validations_do_not_swap_weights(source, tmp_path, monkeypatch):
    validations_are_interrupted(source, tmp_path, INTERRUPTIONS, monkeypatch)


@pytest.mark.long
def test_thirty_interrupted_validations(source, tmp_path, monkeypatch):
    validations_are_interrupted(source, tmp_path, INTERRUPTIONS_LONG, monkeypatch)
    report(
        fault=f"validation interrupted {INTERRUPTIONS_LONG} times (an error, KeyboardInterrupt, SIGTERM)",
        target="raw and averaged weights not swapped",
        result=f"{INTERRUPTIONS_LONG} of {INTERRUPTIONS_LONG}; final weights and metrics.jsonl bit-identical",
    )
