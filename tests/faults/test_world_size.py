"""A run that goes on with another number of processes: the same batches, and the same weights up to rounding."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.faults.fault_rows import report
from tests.helpers.faults import ranks, rows
from tests.helpers.runs import leftovers, request, write_images
from unified_vae.data.batches import TrainBatch, batch_indices
from unified_vae.training.train_step import VAEStep

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="several processes with gloo are tested on Linux")
STEPS, BATCH = 18, 8
# a gradient that is rounding alone moves nothing with this eps; with the usual 1e-8, Adam makes a full step of it
OPTIMIZER = {"kind": "adamw", "lr": 1e-3, "eps": 1e-4}
CHANGE = {"training": {"epochs": 3, "log_every_steps": 1, "optimizer": OPTIMIZER}}
MOST = 1e-6


@dataclass(frozen=True)
class Noted:
    """Writes down which images each process takes at each step, and stops the run after one.

    Attributes:
        folder: for a file of each process.
        stop: number of the step after which SIGTERM comes, counted from 1; 0 for never.
    """

    folder: Path
    stop: int = 0

    def install(self, patch: pytest.MonkeyPatch) -> None:
        call = VAEStep.__call__

        def noted(train_step: VAEStep, batch: TrainBatch, step: int) -> torch.Tensor:
            rank = train_step.runtime.rank
            entry = {"step": step, "rank": rank, "images": batch.indices.tolist()}
            with (self.folder / f"taken-{rank}.jsonl").open("a") as file:
                file.write(json.dumps(entry) + "\n")
            metrics = call(train_step, batch, step)
            if step + 1 == self.stop and rank == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            return metrics

        patch.setattr(VAEStep, "__call__", noted)


def _went(folder: Path, source: Path, starts: list[tuple[int, int]]) -> Path:
    """A run of several starts, each of (processes, step after which it is stopped)."""
    folder.mkdir()
    run_request = request(folder / "run", source, CHANGE)
    for processes, stop in starts:
        for answer in ranks(run_request, (Noted(folder, stop),), folder, processes):
            assert answer["exit_code"] == (143 if stop else 0), answer
    assert leftovers(run_request.run_dir) == []
    return folder


def _order(folder: Path) -> list[list[int]]:
    """The images of each step, over all processes."""
    entries = [json.loads(line) for path in folder.glob("taken-*.jsonl") for line in path.read_text().splitlines()]
    steps = sorted({entry["step"] for entry in entries})
    parts = [sorted((entry["rank"], entry["images"]) for entry in entries if entry["step"] == step) for step in steps]
    assert steps == list(range(STEPS))
    return [[image for _, share in step for image in share] for step in parts]


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    newest = max((folder / "run" / "checkpoints").iterdir())
    groups = {name: load_file(newest / f"{name}.safetensors") for name in ("model", "ema")}
    return {f"{group}.{name}": value for group, held in groups.items() for name, value in held.items()}


@pytest.mark.figure
def test_from_one_process_to_two_and_back(tmp_path: Path) -> None:
    source = write_images(tmp_path / "images.npy")
    alone = _went(tmp_path / "alone", source, [(1, 0)])
    changed = _went(tmp_path / "changed", source, [(1, 5), (2, 12), (1, 0)])
    order = _order(alone)
    count = 1 + max(image for batch in order for image in batch)
    assert order == [batch_indices(0, step, count, BATCH).tolist() for step in range(STEPS)]
    assert _order(changed) == order
    first, second = _weights(alone), _weights(changed)
    assert first.keys() == second.keys()
    largest = max(float((first[name] - second[name]).abs().max()) for name in first)
    assert largest <= MOST
    assert [row["step"] for row in rows(changed / "run")] == [row["step"] for row in rows(alone / "run")]
    report(
        fault="a run resumed with 1, then 2, then 1 processes",
        target=f"same images per step; weights to {MOST:.0e} (AdamW, eps 1e-4)",
        result=f"{STEPS} of {STEPS} steps; largest weight difference {largest:.1e}",
    )
