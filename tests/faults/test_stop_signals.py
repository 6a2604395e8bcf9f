"""Signals at any moment of the real command: it saves, leaves with the signal's code, and goes on to the same bits."""

import os
import random
import signal
import sys
import time

import pytest
from commands import PATIENCE_SECONDS, ended, said_by, settings_file, started
from figures import report
from lives import leftovers, outcome

from unified_vae.training.checkpoint_ring import saved_steps

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signals and a fork server")
STOPPING = ("SIGTERM", "SIGINT", "SIGHUP")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A file of settings for the side door."""
    return settings_file(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    for name in ("warm", "timed"):
        begun = time.monotonic()
        assert ended(started(config, folder / name)) == 0
    return outcome(folder / "timed"), time.monotonic() - begun


def after(process, seconds: float, name: str) -> tuple[int, float]:
    """Send the signal after so many seconds; exit code, and seconds from the signal to the end."""
    process.join(seconds)
    sent = time.monotonic()
    if process.is_alive():
        os.kill(process.pid, getattr(signal, name))
    return ended(process), time.monotonic() - sent


@pytest.mark.parametrize("trials", [9, pytest.param(100, marks=pytest.mark.long)])
def test_at_random_instants(trials, config, undisturbed, tmp_path):
    expected, seconds = undisturbed
    rng, slowest, codes = random.Random(trials), 0.0, []
    for number in range(trials):
        run_dir, name = tmp_path / f"run-{number}", STOPPING[number % len(STOPPING)]
        # SIGHUP before the loop ends the process as it ends every program: there is nothing to save yet
        code, took = after(started(config, run_dir), rng.uniform(0, 1.1) * seconds, name)
        usual = 128 + getattr(signal, name)
        assert code in (0, usual, -getattr(signal, name)), (code, said_by(run_dir).read_text())
        assert "Traceback" not in said_by(run_dir).read_text()
        codes.append(code)
        slowest = max(slowest, took if code != 0 else 0.0)
        assert ended(started(config, run_dir)) == 0
        assert outcome(run_dir) == expected
        assert leftovers(run_dir) == []
    assert sum(code != 0 for code in codes) > trials / 3, "too few were stopped"
    report(
        fault="SIGTERM, SIGINT, SIGHUP at random instants, start and end of the process included",
        target="resumable, right exit code, no hang",
        result=f"{trials} of {trials} resumed to the same bits; slowest end {slowest:.1f} s after the signal",
    )


def _until(condition, process) -> None:
    limit = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert process.is_alive() and time.monotonic() < limit
        time.sleep(0.002)


def test_usr1_saves_and_goes_on(config, undisturbed, tmp_path):
    process = started(config, tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    _until(lambda: saved_steps(checkpoints), process)
    for _ in range(5):
        os.kill(process.pid, signal.SIGUSR1)
        time.sleep(0.02)
    assert ended(process) == 0
    assert outcome(tmp_path / "run") == undisturbed[0]


@pytest.mark.parametrize("trials", [5, pytest.param(100, marks=pytest.mark.long)])
def test_usr1_ends_no_run_at_any_moment(trials, config, undisturbed, tmp_path):
    expected, seconds = undisturbed
    rng = random.Random(trials)
    for number in range(trials):
        run_dir = tmp_path / f"run-{number}"
        code, _ = after(started(config, run_dir), rng.uniform(0, 1.0) * seconds, "SIGUSR1")
        if code == -signal.SIGUSR1 and not run_dir.exists():  # before the first line of ours: nothing has begun
            code = ended(started(config, run_dir))
        assert code == 0, said_by(run_dir).read_text()
        assert outcome(run_dir) == expected
        assert leftovers(run_dir) == []
    report(
        fault="SIGUSR1 at random instants, start and end of the process included",
        target="the run goes on, to the same bits",
        result=f"{trials} of {trials}",
    )


@pytest.mark.parametrize("trials", [3, pytest.param(40, marks=pytest.mark.long)])
def test_a_second_interrupt_leaves_at_once_without_damage(trials, config, undisturbed, tmp_path):
    rng = random.Random(trials)
    for number in range(trials):
        run_dir = tmp_path / f"run-{number}"
        process = started(config, run_dir)
        _until(lambda folder=run_dir: saved_steps(folder / "checkpoints"), process)
        os.kill(process.pid, signal.SIGINT)
        time.sleep(rng.uniform(0, 0.03))
        os.kill(process.pid, signal.SIGINT)
        assert ended(process) in (0, 130)
        assert ended(started(config, run_dir)) == 0
        assert outcome(run_dir) == undisturbed[0]
        assert leftovers(run_dir) == []
    report(
        fault="SIGINT twice, up to 30 ms apart",
        target="leaves at once, checkpoints whole",
        result=f"{trials} of {trials} resumed to the same bits",
    )
