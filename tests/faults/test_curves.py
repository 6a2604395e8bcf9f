"""TensorBoard's curves after kills: read back from its files, each step once, in order, with the values of the run."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.fault_rows import report
from tests.helpers.faults import rows, run_with_faults
from tests.helpers.runs import request, server, write_images
from unified_vae.core import checkpoint_format
from unified_vae.core.checkpoint_format import Checkpoint
from unified_vae.core.retention import saved_steps
from unified_vae.training.trainer import Trainer

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL and a fork server")
STEPS = 36  # 6 epochs of 6; saved after 4, 6, 8, 12, 16, ...
CHANGE = {"training": {"log_every_steps": 1, "checkpoint": {"every_minutes": 600.0, "every_steps": 4}}}


@dataclass(frozen=True)
class Killed:
    """SIGKILL after a step.

    Attributes:
        step: counted from 1.
        saved: the newest checkpoint by then, which is waited for; none is where this is None.
        unsaved: from this step on, saves never reach the disk.
    """

    step: int
    saved: int | None = None
    unsaved: int | None = None

    def install(self, patch: pytest.MonkeyPatch) -> None:
        if self.unsaved is not None:
            save = checkpoint_format.save

            def held(root: Path, content: Checkpoint) -> Path:
                if content.step >= self.unsaved:
                    threading.Event().wait()  # until the process is killed
                return save(root, content)

            patch.setattr(checkpoint_format, "save", held)
        count = Trainer.count

        def counted(trainer: Trainer, metrics: object) -> None:
            count(trainer, metrics)
            if trainer.state.step == self.step:
                if self.saved is not None:
                    trainer.checkpointer.wait()
                    assert saved_steps(trainer.checkpointer.root)[0] == self.saved
                os.kill(os.getpid(), signal.SIGKILL)

        patch.setattr(Trainer, "count", counted)


def _run(run_request, *faults) -> int:
    process = server().Process(target=run_with_faults, args=(run_request, faults, None, {}))
    process.start()
    process.join(120)
    return process.exitcode


def _curves(run_dir: Path) -> dict[str, dict[int, float]]:
    """Every curve as TensorBoard shows it, step by step."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    result = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={SCALARS: 0}).Reload()
    curves = {}
    for tag in result.Tags()[SCALARS]:
        events = result.Scalars(tag)
        steps = [event.step for event in events]
        assert steps == sorted(set(steps)), f"{tag}: {steps}"
        curves[tag] = {event.step: event.value for event in events}
    return curves


@pytest.mark.figure
def test_each_step_is_shown_once_and_none_is_missing(tmp_path: Path) -> None:
    run_request = request(tmp_path / "run", write_images(tmp_path / "images.npy"), CHANGE)
    killed_runs = [
        (Killed(11, saved=8),),  # three steps after a save
        (Killed(25, unsaved=24),),  # the validation of step 24 is in its file, the checkpoint is not: it comes again
    ]
    for faults in killed_runs:
        assert _run(run_request, *faults) == -signal.SIGKILL
    assert saved_steps(run_request.run_dir / "checkpoints")[0] < 24
    assert _run(run_request) == 0
    curves = _curves(run_request.run_dir)
    assert len({path.name for path in (run_request.run_dir / "tensorboard").glob("events.*")}) >= len(killed_runs) + 1
    for split, steps in (("train", range(1, STEPS + 1)), ("validation", range(0, STEPS + 1, 6))):
        written = rows(run_request.run_dir, split)
        assert [row["step"] for row in written] == list(steps)
        for name in written[0].keys() - {"split", "step", "epoch"}:
            shown = curves[f"{split}/{name}"]
            assert list(shown) == list(steps), f"{split}/{name}"
            assert all(math.isclose(shown[row["step"]], row[name], rel_tol=1e-6, abs_tol=1e-30) for row in written)
    report(
        fault=f"SIGKILL {len(killed_runs)} times, three steps after a save and in one: TensorBoard's files read back",
        target="each step once and in order, none missing, values of metrics.jsonl",
        result=f"0 duplicates, 0 gaps in {len(curves)} curves of {STEPS} steps",
    )
