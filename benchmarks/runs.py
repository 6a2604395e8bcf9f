"""Runs of the trainer as the benchmarks need them: settings in, figures out; a stopped benchmark goes on where it was.

A run lies in a folder of the work folder that is named after everything it computes. Where the folder holds its
figures, the run is not made again; where it holds checkpoints, it is continued.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import re
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from unified_vae.cli.app import keep_freed_memory
from unified_vae.config.data import DataConfig
from unified_vae.config.presets import PresetBook, from_command_line
from unified_vae.core.events import Observer, RunStarted, Validated
from unified_vae.core.run_dir import RunFolder
from unified_vae.data.dataset import DataSets
from unified_vae.data.prepare import open_data
from unified_vae.pipeline.fit import fit
from unified_vae.pipeline.plan import RunRequest, plan_mode, plan_presets

QUIET_SECONDS = 30.0  # between two lines of a run under way
NOT_ASKED = {"density.fit": "normal", "training.samples.count": 1, "training.samples.every_epochs": 1000}
"""Settings of runs that nobody samples from or looks at."""

Figures = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Job:
    """One run.

    Attributes:
        name: unique in its benchmark, e.g. "cifar10, 64 latents, seed 0": the key in the JSON.
        settings: dotted path -> value, as after `--set`.
        presets: kind of preset -> name; what is left out is as in train_unified.py.
        cures: the folder of the run that `--mode resume_fix` is to cure; then `presets` play no part.
        keep: leave the run's folder whole, rather than its figures alone.
    """

    name: str
    settings: Mapping[str, object]
    presets: Mapping[str, str] = field(default_factory=dict)
    cures: Path | None = None
    keep: bool = False

    def plan(self, work_dir: Path) -> RunRequest:
        """The composed run and its folder in `work_dir`."""
        words = [f"{path}={json.dumps(value)}" for path, value in self.settings.items()]
        book, command_line = PresetBook.load(), from_command_line({}, words)
        if self.cures is not None:
            run = plan_mode(book, "resume_fix", command_line, self.cures).run
        else:
            run = plan_presets(book, self.presets, command_line, None).run
        content = run.config.model_dump_json() + str(self.cures)
        digest = hashlib.sha256(content.encode()).hexdigest()[:10]
        run_dir = work_dir / f"{re.sub(r'[^A-Za-z0-9.]+', '-', self.name)}-{digest}"
        return RunRequest(run, run_dir, fix_from=self.cures)


def train(job: Job, work_dir: Path) -> Figures:
    """Make the run, or the rest of it, and return its figures (see `figures_of`).

    Raises:
        SystemExit: a signal stopped it; everything is saved, and the same call goes on.
        UserError: as `fit`.
    """
    plan = job.plan(work_dir)
    known = plan.run_dir / "figures.json"
    if known.is_file():
        return json.loads(known.read_text(encoding="utf-8"))
    watcher, begun = _Watcher(job.name), time.monotonic()
    keep_freed_memory()  # as the training commands do
    ending = fit(plan, [watcher])
    if ending.outcome == "interrupted":
        raise SystemExit(ending.exit_code)
    found = figures_of(plan.run_dir, ending.best_step)
    found["seconds"] = None if watcher.resumed else round(time.monotonic() - begun, 1)
    if not job.keep:
        _drop_all(plan.run_dir)
    known.write_text(json.dumps(found), encoding="utf-8")
    return found


def train_all(jobs: Sequence[Job], work_dir: Path, processes: int, threads: int) -> Iterator[tuple[Job, Figures]]:
    """Make all runs, `processes` at a time with `threads` each; yields each when it is done."""
    work_dir.mkdir(parents=True, exist_ok=True)
    if processes == 1:
        yield from ((job, train(job, work_dir)) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, torch.set_num_threads, (threads,)) as pool:
        futures = {pool.submit(train, job, work_dir): job for job in jobs}
        try:
            for done in as_completed(futures):
                yield futures[done], done.result()
        except BaseException:  # Ctrl-C too: the runs under way save themselves, the others do not begin
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
            raise


def figures_of(run_dir: Path, best_step: int | None) -> Figures:
    """The figures of a finished run: those of its best validation, which is the one that was exported.

    Returns:
        psnr, psnr_mean_image, psnr_last (dB), rate_nats, active_units, latents, step, steps, predicted_active_units
        (by the pre-flight), images_per_second (in training), replaced (terms whose pretrained weights were not
        at hand -> what stood in for them).
    """
    rows = validations(run_dir)
    best = next((row for row in rows if row["step"] == best_step), rows[-1])
    folder = RunFolder(run_dir)
    record = json.loads(folder.config.read_text(encoding="utf-8"))
    flight = json.loads(folder.preflight.read_text(encoding="utf-8"))
    speeds = [row["images_per_second"] for row in rows_of(folder.timing) if "images_per_second" in row]
    return {
        "psnr": round(best["psnr"], 3),
        "psnr_mean_image": round(best["psnr.mean_image"], 3),
        "psnr_last": round(rows[-1]["psnr"], 3),
        "rate_nats": round(best["rate.nats"], 3),
        "active_units": round(best["active_units"]),
        "predicted_active_units": flight["predicted"]["active_units"],
        "latents": flight["latents"],
        "step": best["step"],
        "steps": rows[-1]["step"],
        "images_per_second": round(statistics.median(speeds), 1) if speeds else None,
        "replaced": {term: by for term, by, _ in record["substitutions"]},
    }


def validations(run_dir: Path) -> list[dict[str, Any]]:
    """The validation rows of a run's metrics.jsonl, in order."""
    return [row for row in rows_of(RunFolder(run_dir).metrics) if row["split"] == "validation"]


def rows_of(path: Path) -> list[dict[str, Any]]:
    """A file with a JSON object a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def images(source: str, size: int, max_images: int | None = None) -> DataSets:
    """The packed images as a run sees them, in RGB unless all are gray; packs them where they are not yet."""
    return open_data(DataConfig(source=source, max_images=max_images), size, None, lambda *_: None)


def pixels(split: Any) -> torch.Tensor:
    """All images of a side as float [n, channels, size, size] in [0, 1]."""
    return torch.from_numpy(split.images.copy()).permute(0, 3, 1, 2).contiguous().float() / 255


def _drop_all(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


class _Watcher(Observer):
    """A line now and then from a run that takes long."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.resumed = False
        self.spoke = time.monotonic()

    def run_started(self, event: RunStarted) -> None:
        self.resumed = event.resumed

    def validated(self, event: Validated) -> None:
        if time.monotonic() - self.spoke > QUIET_SECONDS:
            self.spoke = time.monotonic()
            print(f"  {self.name}: epoch {event.epoch}, {event.values['psnr']:.2f} dB", flush=True)
