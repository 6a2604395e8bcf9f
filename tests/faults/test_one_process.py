"""Two starts in one folder: the second is refused with the first one's number and host, and disturbs nothing."""

import os
import signal
import socket
import sys

import pytest

from tests.faults.fault_rows import report
from tests.helpers.commands import ended, halted, said_by, settings_file, started
from tests.helpers.faults import Halt
from tests.helpers.runs import leftovers, outcome

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signals and a fork server")
TRAINED = {"training": {"epochs": 3, "checkpoint": {"every_minutes": 1e-6}}}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return settings_file(tmp_path_factory.mktemp("data"), TRAINED)


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert ended(started(config, folder)) == 0
    return outcome(folder)


@pytest.mark.parametrize(
    "trials", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.long)]
)
def test_the_second_start_is_refused_and_the_first_goes_on(trials, config, undisturbed, tmp_path):
    for number in range(trials):
        run_dir = tmp_path / f"run-{number}"
        first = started(config, run_dir, faults=(Halt(4),))  # so that it cannot be over before the second has asked
        halted(first)
        second = started(config, run_dir, rank=1, environment={"RANK": "0"})
        code = ended(second)
        os.kill(first.pid, signal.SIGCONT)
        said = said_by(run_dir, 1).read_text()
        assert code == 3 and f"process {first.pid} on {socket.gethostname()}" in said and "Traceback" not in said
        assert ended(first) == 0
        assert outcome(run_dir) == undisturbed
        assert leftovers(run_dir) == []
    report(
        fault="a second start in the folder of a run under way",
        target="refused with process and host; the first is not disturbed",
        result=f"{trials} of {trials} refused; the first ended in the same bits each time",
    )
