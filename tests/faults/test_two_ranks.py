"""Two processes of one run: a signal to one of them or to both, and the sudden death of one."""

import os
import random
import signal
import sys
import time

import pytest

from tests.faults.fault_rows import report
from tests.helpers.commands import ended, halted, said_by, sent, settings_file, started, started_together
from tests.helpers.faults import Halt
from tests.helpers.runs import leftovers, outcome
from unified_vae.core.retention import saved_steps

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="several processes with gloo are tested on Linux")
STEPS = 18  # 3 epochs of 6
TRAINED = {"training": {"epochs": 3, "checkpoint": {"every_minutes": 1e-6}}}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return settings_file(tmp_path_factory.mktemp("data"), TRAINED)


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    """What both leave when nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert ended(started(config, folder / "warm")) == 0  # packs the images
    assert [ended(process) for process in started_together(config, folder / "run")] == [0, 0]
    return outcome(folder / "run")


WHOM = ((0,), (1,), (0, 1))
STOPPING = ("SIGTERM", "SIGINT", "SIGHUP")


@pytest.mark.parametrize(
    "trials", [1, pytest.param(3, marks=pytest.mark.slow), pytest.param(60, marks=pytest.mark.long)]
)
def test_a_signal_to_some_ranks_stops_all_at_the_same_step(trials, config, undisturbed, tmp_path):
    rng, slowest = random.Random(trials), 0.0
    for number in range(trials):
        run_dir, whom = tmp_path / f"run-{number}", WHOM[number % 3]
        name = STOPPING[(number + number // 3) % 3]
        processes = started_together(config, run_dir, faults=(Halt(rng.randint(1, STEPS // 2)),))
        halted(processes[0])
        begun = time.monotonic()
        for rank in whom:
            os.kill(processes[rank].pid, getattr(signal, name))
        sent(processes[0], "SIGCONT")
        codes = [ended(process) for process in processes]
        slowest = max(slowest, time.monotonic() - begun)
        assert codes == [128 + getattr(signal, name)] * 2, (name, whom, codes, said_by(run_dir).read_text())
        assert 0 < saved_steps(run_dir / "checkpoints")[0] < STEPS
        assert [ended(process) for process in started_together(config, run_dir)] == [0, 0]
        assert outcome(run_dir) == undisturbed
        assert leftovers(run_dir) == []
    report(
        fault="SIGTERM, SIGINT, SIGHUP to rank 0, rank 1, both of 2 ranks",
        target="both exit with 128 + number at the same step, no hang, bit-identical end",
        result=f"{trials} of {trials}; slowest exit {slowest:.1f} s after the signal",
    )


@pytest.mark.parametrize(
    "trials", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(50, marks=pytest.mark.long)]
)
def test_the_death_of_one_rank_ends_the_other(trials, config, undisturbed, tmp_path):
    slowest = 0.0
    for number in range(trials):
        run_dir, victim = tmp_path / f"run-{number}", number % 2
        processes = started_together(config, run_dir, faults=(Halt(2),))
        halted(processes[0])
        processes[victim].kill()
        sent(processes[0], "SIGCONT")
        killed = time.monotonic()
        assert ended(processes[1 - victim], 60) == 3
        slowest = max(slowest, time.monotonic() - killed)
        said = said_by(run_dir, 1 - victim).read_text()
        assert "another process of this run has ended" in said and "Traceback" not in said, said
        assert [ended(process) for process in started_together(config, run_dir)] == [0, 0]
        assert outcome(run_dir) == undisturbed
        assert leftovers(run_dir) == []
    report(
        fault="SIGKILL of one of 2 ranks",
        target="the other exits, relaunch bit-identical, no hang",
        result=f"{trials} of {trials}; slowest exit {slowest:.1f} s after the kill",
    )


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path):
    processes = started_together(settings_file(tmp_path, {"training": {"batch_size": 7}}), tmp_path / "run")
    assert all(ended(process) != 0 for process in processes)
    said = "".join(said_by(tmp_path / "run", rank).read_text() for rank in (0, 1))
    assert "training.batch_size 7 cannot be shared by 2 processes: give 6 or 8" in said
