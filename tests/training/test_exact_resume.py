"""Stopped anywhere, started again by the same request: the same bits as the run that was left alone."""

import os
import signal
import sys

import pytest

from tests.faults.fault_rows import report
from tests.helpers.runs import Recorder, outcome, request, run_and_exit, server, train

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL and a fork server")


@pytest.fixture(scope="module")
def undisturbed(source, tmp_path_factory):
    """A run that nobody interrupts."""
    run_dir = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert end_by_itself(request(run_dir, source)) == 0
    return run_dir


def end_by_itself(run_request):
    process = server().Process(target=run_and_exit, args=(run_request,))
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_saves_and_leaves_with_its_code(undisturbed, source, tmp_path, name):
    run_request = request(tmp_path / "run", source)
    number = getattr(signal, name)
    process = server().Process(target=run_and_exit, args=(run_request, StopAt(3, number)))
    process.start()
    process.join(60)
    assert process.exitcode == 128 + number
    assert end_by_itself(run_request) == 0
    assert outcome(tmp_path / "run") == outcome(undisturbed)


STEPS = 36  # 6 epochs of 6


class StopAt(Recorder):
    """Sends a signal to its own process after a step."""

    def __init__(self, step, number=signal.SIGTERM):
        super().__init__()
        self.step, self.number = step, number

    def step_done(self, event):
        if event.step == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(
    "stops",
    [
        pytest.param((1, 6, STEPS), id="three"),
        pytest.param((1, 5, 6, 7, 23, STEPS), id="six", marks=pytest.mark.slow),
        pytest.param(range(1, STEPS + 1), id="every", marks=pytest.mark.long),
    ],
)
def test_a_run_cut_at_a_step_and_given_its_full_length_back(stops, source, tmp_path, undisturbed):
    """Also at the last step of an epoch, on a validation, after one step, and after the last."""
    import torch

    torch.set_num_threads(1)
    for stop in stops:
        run_request = request(tmp_path / f"run-{stop}", source)
        first = train(run_request, [StopAt(stop)])
        assert (first.outcome, first.exit_code, first.step) == ("interrupted", 143, stop)
        second = train(run_request, [Recorder()])
        assert (second.outcome, second.step) == ("finished", STEPS)
        assert outcome(tmp_path / f"run-{stop}") == outcome(undisturbed), stop
        again = Recorder()
        assert train(run_request, [again]).outcome == "already finished" and again.finished.exit_code == 0
    report(
        fault="SIGTERM in a step, the run resumed from there",
        target="bit-identical end, exact number of steps",
        result=f"{len(stops)} of {len(stops)} steps of {STEPS}, the last among them",
    )


def _run_and_report(run_request, queue):

    train(run_request, [Recorder()])
    queue.put(sorted(name for name in ("torch._dynamo", "sympy", "torchvision", "torchmetrics") if name in sys.modules))


def test_a_run_loads_nothing_heavy_beside_torch(source, tmp_path):
    """Each of these takes seconds; none of them is needed to train with the plain losses."""
    queue = server().Queue()
    process = server().Process(target=_run_and_report, args=(request(tmp_path / "run", source), queue))
    process.start()
    assert queue.get(timeout=120) == []
    process.join()
