"""A stop between the micro-batches of a step: the step is finished, and the run goes on to the same bits."""

import signal
import sys

import pytest

from tests.faults.fault_rows import report
from tests.helpers.faults import SignalInside, injected
from tests.helpers.runs import Recorder, merged, outcome, request, train
from unified_vae.core.retention import saved_steps

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
NUM_MICRO_BATCHES = 4
SETTINGS = {
    "training": {"epochs": 2, "gradient_accumulation_steps": NUM_MICRO_BATCHES, "checkpoint": {"every_minutes": 9.0}}
}


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    assert train(request(run_dir, source, SETTINGS), [Recorder()]).exit_code == 0
    return outcome(run_dir)


@pytest.mark.parametrize("steps", [[4], pytest.param([1, 2, 5, 6, 7, 11, 12], marks=pytest.mark.long)])
def test_a_stop_inside_a_step_waits_for_its_end(source, whole, tmp_path, steps):
    places = [(step, micro_batch) for step in steps for micro_batch in range(1, NUM_MICRO_BATCHES)]
    for step, micro_batch in places:
        run_request = request(tmp_path / f"{step}-{micro_batch}", source, SETTINGS)
        with injected(SignalInside(step, micro_batch, signal.SIGTERM)):
            ended = train(run_request, [Recorder()])
        assert ended.exit_code == 143
        assert saved_steps(run_request.run_dir / "checkpoints")[0] == step
        assert train(run_request, [Recorder()]).exit_code == 0
        assert outcome(run_request.run_dir) == whole
    report(
        fault=f"SIGTERM after micro-batch 1, 2, 3 of 4, in {len(steps)} steps",
        target="waits for the optimizer step; bit-identical",
        result=f"{len(places)} of {len(places)}",
    )


def test_the_number_of_micro_batches_may_change_on_resume(source, whole, tmp_path):
    """That is said, and the run ends where it would have but for rounding."""
    run_request = request(tmp_path / "run", source, merged(SETTINGS, {"training": {"max_steps": 6}}))
    train(run_request, [Recorder()])
    watcher = Recorder()
    assert (
        train(
            request(tmp_path / "run", source, merged(SETTINGS, {"training": {"gradient_accumulation_steps": 2}})),
            [watcher],
        ).exit_code
        == 0
    )
    assert "training.gradient_accumulation_steps" in [difference.path for difference in watcher.started[0].differences]
