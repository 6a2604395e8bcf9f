"""Tiny runs, here or in processes that can be killed: a fork server imports torch once for all of them."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from unified_vae.config.run import ComposedRun, RunConfig
from unified_vae.core.errors import CheckpointError
from unified_vae.core.events import Observer, RunFinished
from unified_vae.pipeline.plan import RunRequest

SETTINGS = {
    "model": {"family": "conv", "image_size": 16, "latents": 4, "base_channels": 4},
    "loss": {"l1": {"weight": 0.1}, "kl": {"weight": 2.0, "schedule": {"kind": "linear", "warmup": 0.3}}},
    "training": {
        "epochs": 6,
        "batch_size": 8,
        "log_every_steps": 3,
        "ema_decay": 0.9,
        "optimizer": {"kind": "adamw", "lr": 3e-3},
        "checkpoint": {"every_minutes": 1e-4},
        "samples": {"every_epochs": 3, "count": 4},
    },
    "data": {"augment": {"horizontal_flip": True}},
    "density": {"fit": "gaussian"},
}


def merged(base: dict, change: dict) -> dict:
    """`change` laid over `base`, part by part."""
    both = dict(base)
    for key, value in change.items():
        both[key] = merged(both.get(key, {}), value) if isinstance(value, dict) and "kind" not in value else value
    return both


def write_images(path: Path, count: int = 60, size: int = 16, channels: int = 3, seed: int = 0) -> Path:
    """Pictures of three degrees of freedom as an array file: ramps along x and y, and a spot, of random strengths."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size))
    patterns = np.stack([x, y, 2 * (x**2 + y**2 < 0.4) - 1.0])
    strengths = rng.uniform(-1, 1, (count, 3))
    pictures = 0.5 + 0.16 * np.einsum("nk,khw->nhw", strengths, patterns)
    tint = np.array([1.0, 0.9, 0.8])[:channels]
    np.save(path, (255 * pictures[..., None] * tint).round().astype(np.uint8))
    return path


def request(run_dir: Path, source: Path, change: dict | None = None, **more: object) -> RunRequest:
    """A tiny run on `source`."""
    where = {"data": {"source": str(source), "cache_dir": str(source.parent / "cache")}}
    settings = merged(merged(SETTINGS, where), change or {})
    run = ComposedRun(RunConfig.model_validate_json(json.dumps(settings)), {}, {})
    return RunRequest(run, run_dir, **{"resume": True, "command": "the same again", **more})  # type: ignore[arg-type]


class Recorder(Observer):
    """Keeps every event."""

    def __init__(self) -> None:
        self.notices: list[str] = []
        self.started = []
        self.logged = []
        self.validations = []
        self.finished = None

    def notice(self, text):
        self.notices.append(text)

    def run_started(self, event):
        self.started.append(event)

    def losses_logged(self, event):
        self.logged.append(event)

    def validated(self, event):
        self.validations.append(event)

    def run_finished(self, event):
        self.finished = event


def train(request: RunRequest, observers: Sequence[Observer] = (), **options: object) -> RunFinished:
    """`fit` without the page of the report, whose charts take longer than a tiny run."""
    from unified_vae.pipeline.fit import fit

    return fit(request, observers, finalizers=finalizers_without_report(), **options)  # type: ignore[arg-type]


def finalizers_without_report() -> list[Callable]:
    """What `fit` does after the last step, but for the page of the report."""
    from unified_vae.pipeline.fit import FINALIZERS, finalize

    return [finalizer for finalizer in FINALIZERS if finalizer is not finalize.write_report]


def run_and_exit(run_request: RunRequest, watcher: Recorder | None = None) -> None:
    """Run in this process and exit with the code of the run."""
    import torch

    torch.set_num_threads(1)
    raise SystemExit(train(run_request, [watcher or Recorder()]).exit_code)


def server() -> multiprocessing.context.ForkServerContext:
    """The context whose processes start in milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["unified_vae.pipeline.fit", "torch.utils.tensorboard", "tests.helpers.commands"])
    return context


def start_server() -> None:
    """Wait until the fork server has imported torch, before runs are timed."""
    process = server().Process(target=bool)
    process.start()
    process.join()


WALL_CLOCK = ("seconds",)
"""Entries of a checkpoint's numbers that depend on time. All others have to be the same to the last bit."""


def outcome(run_dir: Path) -> dict[str, bytes]:
    """What has to be the same to the last bit: the exported model, the newest checkpoint's tensors and numbers (best,
    patience, plateau, skipped steps, ...), the metrics.
    """
    newest = max((run_dir / "checkpoints").iterdir())
    files = [run_dir / "metrics.jsonl", run_dir / "model" / "model.safetensors", *sorted(newest.glob("*.safetensors"))]
    result = {path.relative_to(run_dir).as_posix(): path.read_bytes() for path in files}
    return {**result, "state": json.dumps(state_of(newest), sort_keys=True).encode()}


def state_of(checkpoint: Path) -> dict:
    """A checkpoint's numbers: all but those of WALL_CLOCK, and `record`, which says how the run was started."""
    saved = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    return {
        "train": {name: value for name, value in saved["train"].items() if name not in WALL_CLOCK},
        **{part: value for part, value in saved.items() if part not in ("train", "record")},
    }


def leftovers(run_dir: Path) -> list[str]:
    """Files that no finished run should hold."""
    return [path.relative_to(run_dir).as_posix() for path in run_dir.rglob(".tmp*")]


def reads(run_dir: Path, step: int) -> bool:
    """Whether the checkpoint of a step is whole."""
    from unified_vae.core import checkpoint_format

    try:
        checkpoint_format.load(run_dir / "checkpoints", step)
    except CheckpointError:
        return False
    return True
