"""The diagnosis at the end of every run: two lines with its cause and the command for its evidence, and the report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict

import numpy as np

from unified_vae.core.durable import reason, write_text
from unified_vae.core.shell import uv_run
from unified_vae.data.batches import gather, rank_slice
from unified_vae.data.dataset import DataSets
from unified_vae.experiment.diagnosis.cause import HEALTHY, Diagnosis
from unified_vae.experiment.diagnosis.history import History
from unified_vae.experiment.diagnosis.pca_line import PCALine
from unified_vae.experiment.diagnosis.preflight import Preflight
from unified_vae.experiment.diagnosis.remedy import Situation, remedy
from unified_vae.experiment.fitting.assemble import Parts
from unified_vae.experiment.run_folder import RunFolder
from unified_vae.experiment.subject.subject import PIXEL_TERMS
from unified_vae.metrics.reconstruction import ReconstructionSums
from unified_vae.training.runtime import Runtime
from unified_vae.training.validation import reconstructions

MOST_IMAGES = 1000  # of the training set: the gap to validation shows with fewer, and the pass stays short


def diagnosed(parts: Parts, data: DataSets, runtime: Runtime, folder: RunFolder, flight: Preflight) -> Diagnosis | None:
    """What the last validation, the run's course and a look at some training images say.

    Every rank takes part; only the main one, which has the metrics file, gets an answer.
    """
    training_psnr = _on_training_images(parts, data, runtime)
    if not runtime.is_main:
        return None
    history = History.read(folder.metrics)
    if "psnr" not in history.last:  # the file is gone, or cannot be written
        return None
    shares = {row.name: row.share for row in parts.objective.rows(1.0) if row.share is not None}
    return Diagnosis.of(
        history.last,
        parts.model.latents,
        images=len(data.validation),
        training_psnr=training_psnr,
        pixel_share=sum(shares.get(name, 0.0) for name in PIXEL_TERMS),
        beta=history.beta,
        sigma=history.sigma,
        history=history,
        line=PCALine.from_json(flight.to_json(flight.effective_beta(parts.objective.config.kl, history.beta))),
    )


def lines(found: Diagnosis | None, folder: RunFolder) -> list[str]:
    """For the end of the run."""
    if found is None:
        return []
    row = next((row for row in found.evidence() if row.cause == found.cause), None)
    reason = found.figures() if row is None else row.figures
    more = "more" if found.cause == HEALTHY else "evidence and what to do"
    return [f"diagnosis: {found.cause} ({reason})", f"{more}: {uv_run('diagnose.py', folder.root.as_posix())}"]


def write_page(
    folder: RunFolder, diagnosis: Diagnosis | None, situation: Situation, step: int, notice: Callable[[str], None]
) -> list[str]:
    """Keep the diagnosis and write the report of a run that is over; returns the line that names it.

    Whatever goes wrong is only a notice: the run and its model are whole.
    """
    from unified_vae.report.page import write_report

    start = time.monotonic()
    try:
        if diagnosis is not None:
            cure = remedy(diagnosis, situation)
            evidence = [asdict(row) for row in diagnosis.evidence()]
            kept = {"step": step, "cause": diagnosis.cause, "advice": cure.advice, "command": cure.command}
            write_text(folder.closing, json.dumps({**kept, "evidence": evidence}, indent=2) + "\n")
        page = write_report([folder.root])
    except Exception as problem:
        notice(f"{folder.report} could not be written ({reason(problem).rstrip('.')})")
        return []
    return [f"the run on one page: {page.as_posix()} (written in {time.monotonic() - start:.1f} s)"]


def _on_training_images(parts: Parts, data: DataSets, runtime: Runtime) -> float:
    """dB of the averaged weights on as many training images as there are validation images, or MOST_IMAGES."""
    model, at_once = parts.ema.model, parts.stepper.micro_batches
    count = min(len(data.train), len(data.validation), MOST_IMAGES)
    own = np.arange(count)[rank_slice(count, runtime.rank, runtime.world_size)]

    def own_images(pieces: int) -> ReconstructionSums:
        sums = ReconstructionSums.empty(model.channels, model.image_size, runtime.device, runtime.sums_dtype)
        size = parts.plan.micro_batch(runtime.world_size, pieces)
        batches = (gather(data.train, own[start : start + size]) for start in range(0, len(own), size))
        for output, images in reconstructions(model, batches, runtime):
            sums.add(output.reconstruction, images)
        return sums

    sums = at_once.fit(parts.plan.batch_size // runtime.world_size, own_images)
    runtime.sum_in_place(sums.tensors())
    return sums.psnr()
