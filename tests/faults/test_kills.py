"""SIGKILL at any moment, saves included: the same command goes on, to the bits of the run that was left alone."""

import os
import random
import signal
import sys
import time
from dataclasses import dataclass, field

import pytest

from tests.faults.fault_rows import report
from tests.helpers.runs import (
    Recorder,
    leftovers,
    merged,
    outcome,
    reads,
    request,
    run_and_exit,
    server,
    start_server,
    state_of,
    train,
)
from unified_vae.core.files import STAGE_PREFIX
from unified_vae.core.retention import saved_steps, sweep
from unified_vae.core.run_dir import RunFolder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL and a fork server")
STEPS = 36  # of the tiny run: 6 epochs of 6
SAVE_ALWAYS = {"training": {"checkpoint": {"every_minutes": 1e-6, "keep_last": 2}}}
SHORT = {"training": {"epochs": 3}}  # half the steps
PATIENT = {  # 18 validations that go up and down, so that the rate is reduced; stops early at step 54 of 72
    "training": {
        "epochs": 24,
        "batch_size": 16,
        "optimizer": {"kind": "adamw", "lr": 3e-2},
        "lr_schedule": {"kind": "plateau", "patience": 1},
        "early_stopping": {"patience": 10, "min_delta": 40.0},  # no gain is large enough to count
    }
}


@dataclass
class KillStats:
    """What a series of kills came to."""

    kills: int = 0
    runs: int = 0
    different: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    unreadable: list[int] = field(default_factory=list)
    steps_at_death: list[int] = field(default_factory=list)


@pytest.fixture(scope="module")
def undisturbed(source, tmp_path_factory):
    """What a run that nobody interrupts leaves, and the seconds that it takes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    start_server()
    return left_alone(request(folder / "timed", source, SAVE_ALWAYS))


def left_alone(run_request):
    """The end of a run that nobody interrupts, and its seconds."""
    begun = time.monotonic()
    assert run_to_end(run_request) == 0
    return outcome(run_request.run_dir), time.monotonic() - begun


def run_to_end(run_request) -> int:
    """Run to the end: the exit code."""
    process = server().Process(target=run_and_exit, args=(run_request,))
    process.start()
    process.join(120)
    return process.exitcode


def killed_after(run_request, seconds: float) -> bool:
    """Kill a run after so many seconds; False where it was over before."""
    process = server().Process(target=run_and_exit, args=(run_request,))
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def newest_step(run_dir) -> int:
    """Step of the newest complete checkpoint, 0 without one."""
    return max(saved_steps(run_dir / "checkpoints"), default=0)


def kill_repeatedly(kills: int, source, folder, reference, rng, more: dict) -> KillStats:
    """Runs one after the other, each killed until it gets through, for so many kills."""
    expected, seconds = reference
    stats = KillStats()
    change = merged(SAVE_ALWAYS, more)
    while stats.kills < kills:
        stats.runs += 1
        run_dir = folder / f"run-{stats.runs}"
        run_request = request(run_dir, source, change)
        while stats.kills < kills and killed_after(run_request, rng.uniform(0.02, 0.9) * seconds):
            stats.kills += 1
            stats.unreadable += [step for step in saved_steps(run_dir / "checkpoints") if not reads(run_dir, step)]
            stats.steps_at_death.append(newest_step(run_dir))
        assert run_to_end(run_request) == 0
        if outcome(run_dir) != expected:
            stats.different.append(run_dir.name)
        stats.orphans += leftovers(run_dir)
    return stats


@pytest.mark.parametrize(
    "kills",
    [
        3,
        pytest.param(10, marks=pytest.mark.slow),
        pytest.param(100, marks=pytest.mark.slow),
        pytest.param(1000, marks=pytest.mark.long),
    ],
)
@pytest.mark.usefixtures("undisturbed")  # the fork server is warm
def test_killed_anywhere(kills, source, tmp_path):
    alone = left_alone(request(tmp_path / "alone", source, merged(SAVE_ALWAYS, SHORT)))
    stats = kill_repeatedly(kills, source, tmp_path, alone, random.Random(kills), SHORT)
    assert (stats.different, stats.orphans, stats.unreadable) == ([], [], [])
    assert kills < 100 or len(set(stats.steps_at_death)) > 5, "the kills should fall all over the run"
    report(
        fault="SIGKILL at random times",
        target="bit-identical end, no orphan files, no unreadable checkpoint",
        result=f"{stats.kills} kills over {stats.runs} runs: {len(stats.different)} different ends, "
        f"{len(stats.orphans)} orphan files, {len(stats.unreadable)} unreadable checkpoints",
    )


@pytest.mark.parametrize("kills", [1, pytest.param(30, marks=pytest.mark.long)])
@pytest.mark.usefixtures("undisturbed")
def test_killed_anywhere_with_a_plateau_and_patience(kills, source, tmp_path):
    """Validations without gain, reductions of the rate and the early end are counted as in the run left alone."""
    alone = left_alone(request(tmp_path / "alone", source, merged(SAVE_ALWAYS, PATIENT)))
    numbers = state_of(max((tmp_path / "alone" / "checkpoints").iterdir()))["train"]
    assert (numbers["step"], numbers["stopped_early"], numbers["num_bad_epochs"]) == (54, True, 10)
    assert numbers["plateau"]["reductions"] > 0
    stats = kill_repeatedly(kills, source, tmp_path, alone, random.Random(kills), PATIENT)
    assert (stats.different, stats.orphans, stats.unreadable) == ([], [], [])
    assert kills < 30 or len(set(stats.steps_at_death)) > kills // 4, "the kills should fall all over the run"
    report(
        fault="SIGKILL at random times, with plateau schedule and early stopping",
        target="bit-identical end",
        result=f"{stats.kills} kills over {stats.runs} runs: {len(stats.different)} different ends",
    )


def test_leftovers_of_a_killed_start_are_cleared(tmp_path):
    folder = RunFolder(tmp_path / "run")
    places = (folder.root, folder.checkpoints, folder.samples, folder.tensorboard, folder.model)
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{STAGE_PREFIX}probe-1").write_bytes(b"")
    folder.sweep()
    sweep(folder.checkpoints)
    assert leftovers(folder.root) == []


class KilledInEpoch(Recorder):
    """Dies of SIGKILL at a step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def step_done(self, event):
        if event.step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def _die_at(run_request, step: int) -> None:
    import torch

    torch.set_num_threads(1)
    train(run_request, [KilledInEpoch(step)])


def test_killed_twice_in_the_same_epoch(undisturbed, source, tmp_path):
    run_request = request(tmp_path / "run", source, SAVE_ALWAYS)
    for step in (14, 16):  # epochs have 6 steps
        process = server().Process(target=_die_at, args=(run_request, step))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
    assert run_to_end(run_request) == 0
    assert outcome(tmp_path / "run") == undisturbed[0]
    assert leftovers(tmp_path / "run") == []


@pytest.mark.parametrize(
    "steps",
    [
        (6, 35),
        pytest.param((1, 6, 7, 35, 36), marks=pytest.mark.slow),
        pytest.param(tuple(range(1, STEPS + 1)), marks=pytest.mark.long),
    ],
    ids=["two", "five", "every"],
)
def test_resumed_from_a_step(steps, undisturbed, source, tmp_path):
    """Also from the first, from the last of an epoch, from one with a validation, and from the last of all."""
    for step in steps:
        run_request = request(tmp_path / f"run-{step}", source, SAVE_ALWAYS)
        process = server().Process(target=_die_at, args=(run_request, step))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        assert run_to_end(run_request) == 0
        assert outcome(tmp_path / f"run-{step}") == undisturbed[0], step
    report(
        fault="resume from a step", target="bit-identical end", result=f"{len(steps)} of {len(steps)} steps of {STEPS}"
    )


def test_ten_generations(undisturbed, source, tmp_path):
    """A resume of a resume of a resume: one process for every few steps."""
    generations = list(range(3, STEPS, 4))
    for step in generations:
        process = server().Process(target=_die_at, args=(request(tmp_path / "run", source, SAVE_ALWAYS), step))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
    assert run_to_end(request(tmp_path / "run", source, SAVE_ALWAYS)) == 0
    assert outcome(tmp_path / "run") == undisturbed[0]
    report(
        fault="resume of a resume",
        target="10 generations, no drift",
        result=f"{len(generations) + 1} generations, bit-identical end",
    )
