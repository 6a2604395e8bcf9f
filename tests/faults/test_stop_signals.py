"""Signals at any moment of the real command: it saves, leaves with the signal's code, and goes on to the same bits."""

import json
import random
import signal
import sys
import time

import pytest

from tests.faults.fault_rows import report
from tests.helpers.commands import ended, halted, said_by, sent, settings_file, started, until
from tests.helpers.faults import Halt, SlowDisk, run_with_faults
from tests.helpers.runs import leftovers, outcome, reads, request, run_and_exit, server, start_server, write_images
from unified_vae.core.files import STAGE_PREFIX
from unified_vae.core.retention import saved_steps

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signals and a fork server")
STOPPING = ("SIGTERM", "SIGINT", "SIGHUP")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A file of settings for train_unified.py."""
    return settings_file(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    start_server()
    begun = time.monotonic()
    assert ended(started(config, folder / "run")) == 0
    return outcome(folder / "run"), time.monotonic() - begun


def after(process, run_dir, seconds: float, name: str) -> tuple[int, float]:
    """Send the signal so many seconds after the first line of ours; exit code, and seconds from there to the end.

    An interrupt before it is the fork server's, which makes of it what it likes.
    """
    until(said_by(run_dir).exists, process)
    process.join(seconds)
    begun = time.monotonic()
    sent(process, name)
    return ended(process), time.monotonic() - begun


@pytest.mark.parametrize("trials", [pytest.param(6, marks=pytest.mark.slow), pytest.param(100, marks=pytest.mark.long)])
def test_at_random_instants(trials, config, undisturbed, tmp_path):
    expected, seconds = undisturbed
    rng, slowest, codes = random.Random(trials), 0.0, []
    for number in range(trials):
        run_dir, name = tmp_path / f"run-{number}", STOPPING[number % len(STOPPING)]
        # SIGHUP before the loop ends the process as it ends every program: there is nothing to save yet
        code, took = after(started(config, run_dir), run_dir, rng.uniform(0, 1.0) * seconds, name)
        usual = 128 + getattr(signal, name)
        assert code in (0, usual, -getattr(signal, name)), (code, said_by(run_dir).read_text())
        assert "Traceback" not in said_by(run_dir).read_text()
        codes.append(code)
        slowest = max(slowest, took if code != 0 else 0.0)
        assert ended(started(config, run_dir)) == 0
        assert outcome(run_dir) == expected
        assert leftovers(run_dir) == []
    assert sum(code != 0 for code in codes) > trials / 4, "too few were stopped"
    report(
        fault="SIGTERM, SIGINT, SIGHUP at random times, also at start and end",
        target="resumable, right exit code, no hang",
        result=f"{trials} of {trials} bit-identical; slowest exit {slowest:.1f} s after the signal",
    )


# nothing but a signal saves between step 0 and the end: 60 steps without a validation, far below the minutes
SELDOM = {"training": {"epochs": 10, "validate_every_epochs": 1000, "checkpoint": {"every_minutes": 600.0}}}


@pytest.mark.figure
def test_usr1_saves_though_no_timer_asks_and_the_run_goes_on(tmp_path):
    config = settings_file(tmp_path, SELDOM)
    assert ended(started(config, tmp_path / "undisturbed")) == 0
    process = started(config, tmp_path / "run", faults=(Halt(10), Halt(30)))
    for _ in range(2):
        halted(process)
        assert sent(process, "SIGUSR1") and sent(process, "SIGCONT")
    assert ended(process) == 0
    timings = [json.loads(line) for line in (tmp_path / "run" / "timing.jsonl").read_text().splitlines()]
    assert [row["step"] for row in timings if "save_seconds" in row] == [0, 0, 10, 30, 60]
    assert reads(tmp_path / "run", 30)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "undisturbed")
    assert said_by(tmp_path / "run").read_text().count("run started") == 1
    report(
        fault="SIGUSR1 in training, checkpoint.every_minutes 600",
        target="saves at once, run continues to the same bits",
        result="2 of 2 saved, at steps 10 and 30 of 60; bit-identical",
    )


@pytest.mark.parametrize(
    "trials", [1, pytest.param(3, marks=pytest.mark.slow), pytest.param(100, marks=pytest.mark.long)]
)
def test_usr1_ends_no_run_at_any_moment(trials, config, undisturbed, tmp_path):
    expected, seconds = undisturbed
    rng = random.Random(trials)
    for number in range(trials):
        run_dir = tmp_path / f"run-{number}"
        code, _ = after(started(config, run_dir), run_dir, rng.uniform(0, 1.0) * seconds, "SIGUSR1")
        if code == -signal.SIGUSR1 and not run_dir.exists():  # before the first line of ours: nothing has begun
            code = ended(started(config, run_dir))
        assert code == 0, said_by(run_dir).read_text()
        assert outcome(run_dir) == expected
        assert leftovers(run_dir) == []
    report(
        fault="SIGUSR1 at random times, also at start and end",
        target="the run continues to the same bits",
        result=f"{trials} of {trials}",
    )


@pytest.mark.parametrize(
    "trials", [1, pytest.param(3, marks=pytest.mark.slow), pytest.param(40, marks=pytest.mark.long)]
)
def test_a_second_interrupt_leaves_at_once_without_damage(trials, config, undisturbed, tmp_path):
    """Up to 30 ms after the first: in the step, in its save, between the two, on the way out, or too late."""
    at_once = 0
    for number in range(trials):
        run_dir = tmp_path / f"run-{number}"
        process = started(config, run_dir, faults=(Halt(4),))
        halted(process)
        assert sent(process, "SIGINT") and sent(process, "SIGCONT")
        time.sleep((0.002, 0.01, 0.03)[number % 3])
        sent(process, "SIGINT")  # may find it gone, or, where the first one still waits, be one with that
        assert ended(process) == 130, said_by(run_dir).read_text()
        at_once += "aborted" in said_by(run_dir).read_text()
        assert "Traceback" not in said_by(run_dir).read_text()
        assert all(reads(run_dir, step) for step in saved_steps(run_dir / "checkpoints"))
        assert ended(started(config, run_dir)) == 0
        assert outcome(run_dir) == undisturbed[0]
        assert leftovers(run_dir) == []
    assert at_once > 0 or trials < 10, "none of them was left by the second"
    report(
        fault="SIGINT twice, 2 to 30 ms apart",
        target="exit code 130, checkpoints complete",
        result=f"{trials} of {trials} exited with 130 and resumed to the same bits; {at_once} at the second signal",
    )


@pytest.mark.parametrize("trials", [pytest.param(2, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.long)])
def test_a_second_interrupt_during_the_save_leaves_it_undone(trials, undisturbed, tmp_path):
    """The disk takes its time, so that each save lasts far longer than the two signals are apart."""
    write_images(tmp_path / "images.npy")
    for number in range(trials):
        run_request = request(tmp_path / f"run-{number}", tmp_path / "images.npy")
        checkpoints = run_request.run_dir / "checkpoints"
        process = server().Process(target=run_with_faults, args=(run_request, (SlowDisk(0.2),), None, {}))
        process.start()
        until(lambda folder=checkpoints: saved_steps(folder) and staged(folder), process)
        due = staged(checkpoints)
        assert sent(process, "SIGINT")
        if number % 2:  # the first signal's own save; else the one that was due before it
            until(lambda folder=checkpoints, other=due: staged(folder) - other, process)
        time.sleep(0.03)
        whole = saved_steps(checkpoints)
        assert sent(process, "SIGINT")
        assert ended(process) == 130
        assert staged(checkpoints), "it left before the save was done"
        assert saved_steps(checkpoints) == whole and all(reads(run_request.run_dir, step) for step in whole)
        assert ended(start_run(run_request)) == 0
        assert outcome(run_request.run_dir) == undisturbed[0]
        assert leftovers(run_request.run_dir) == []
    report(
        fault="SIGINT twice, the second during the save",
        target="exits at once with 130, previous checkpoint complete",
        result=f"{trials} of {trials} abandoned the save and resumed to the same bits",
    )


def start_run(run_request):
    """Start a run in a process of its own."""
    process = server().Process(target=run_and_exit, args=(run_request,))
    process.start()
    return process


def staged(checkpoints) -> set[str]:
    """Saves that are being written."""
    return {path.name for path in checkpoints.glob(f"{STAGE_PREFIX}step-*")}
