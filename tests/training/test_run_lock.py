"""One process a run: a second one is refused by name, a dead one is no obstacle."""

import multiprocessing
import os
import sys

import pytest

from unified_vae.core.errors import EnvironmentProblem
from unified_vae.training.run_lock import locked


def hold(run_dir, ready):
    with locked(run_dir):
        ready.set()
        ready.wait_for_ever()


class Ready:
    """An event to report by, and a wait that only a signal ends."""

    def __init__(self, context):
        self.event = context.Event()
        self.never = context.Event()

    def set(self):
        self.event.set()

    def wait_for_ever(self):
        self.never.wait()


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_second_process_is_refused_and_a_killed_one_forgotten(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = Ready(context)
    process = context.Process(target=hold, args=(tmp_path / "run", ready))
    process.start()
    assert ready.event.wait(60)
    with pytest.raises(EnvironmentProblem, match=f"in use by process {process.pid} on "), locked(tmp_path / "run"):
        pass
    with locked(tmp_path / "other"):
        pass
    process.kill()
    process.join()
    with locked(tmp_path / "run"):
        assert str(os.getpid()) in (tmp_path / ".run.holder.json").read_text()
    assert not (tmp_path / ".run.holder.json").exists()
