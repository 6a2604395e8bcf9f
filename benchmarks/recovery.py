"""Does `--mode resume_fix` bring collapsed runs back? Five patients of different images, sizes and causes.

Each is trained until its posterior has collapsed, then cured. Recovered means: fewer than half of the units were active
and more than half are, and at least 5 dB more.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runs import NOT_ASKED, Figures, Job, train_all
from script import overrides, parser, save, settle, source, start, table

NAME = "recovery"
WANTED_DB = 5.0


@dataclass(frozen=True)
class Patient:
    """A run that collapses.

    Attributes:
        data: the set.
        cause: in words.
        settings: over the usual ones; dotted path -> value.
        loss: its loss preset.
    """

    data: str
    cause: str
    settings: Mapping[str, object]
    loss: str = "mse_only"


PATIENTS = (
    Patient("cifar10", "beta 2,000", {"model.image_size": 32, "model.latents": 64, "loss.kl.weight": 2000.0}),
    Patient(
        "fashion_mnist",
        "beta 500, network without PCA start",
        {"model.image_size": 32, "model.latents": 32, "loss.kl.weight": 500.0, "model.pca_init": False},
    ),
    Patient(
        "faces128",
        "the predecessor's mean squared error + sum of KL",
        {"model.image_size": 64, "model.latents": 128, "loss.kl.weight": 1.0, "loss.kl.reduction": "mean_sum"},
    ),
    Patient(
        "builtin",
        "beta 5,000",
        {"model.image_size": 64, "model.latents": 64, "loss.kl.weight": 5000.0, "data.max_images": 1000},
        loss="mse_l1",
    ),
    Patient(
        "tiles32_rgba",
        "beta 10,000, wider network",
        {"model.image_size": 32, "model.latents": 128, "loss.kl.weight": 10_000.0, "model.base_channels": 32},
        loss="high_quality",
    ),
)


def read_options() -> argparse.Namespace:
    options = parser(NAME, __doc__)
    names = [patient.data for patient in PATIENTS]
    options.add_argument("--sets", nargs="+", choices=names, default=names)
    options.add_argument("--sick-epochs", type=int, default=4)
    options.add_argument("--epochs", type=int, default=8, help="of the cure")
    given = settle(options.parse_args())
    if given.quick:
        given.sets, given.sick_epochs, given.epochs = given.sets[:1], 1, 1
    return given


def sick_job(options: argparse.Namespace, patient: Patient, seed: int) -> Job:
    settings = {
        "data.source": source(options, patient.data),
        "seed": seed,
        "model.base_channels": 16,
        "training.epochs": options.sick_epochs,
        **NOT_ASKED,
        **({"data.max_images": 200} if options.quick else {}),
        **overrides(options),
        **patient.settings,
    }
    return Job(f"{patient.data}, seed {seed}", settings, {"loss": patient.loss}, keep=True)


def cure_job(options: argparse.Namespace, sick: Job) -> Job:
    settings = {"training.epochs": options.epochs, **NOT_ASKED}
    return Job(f"{sick.name}, cured", settings, cures=sick.plan(options.work_dir).run_dir, keep=True)


def row(options: argparse.Namespace, patient: Patient, cure: Job, found: Figures, sick: Figures) -> dict[str, Any]:
    """Before and after; before is what the cure itself measured."""
    before = json.loads((cure.plan(options.work_dir).run_dir / "before.json").read_text(encoding="utf-8"))
    gain = found["psnr"] - before["psnr"]
    was_sick = 2 * before["active_units"] < found["latents"]
    return {
        "patient": cure.name.removesuffix(", cured"),
        "cause": patient.cause,
        "image_size": patient.settings["model.image_size"],
        "latents": found["latents"],
        "psnr_mean_image": found["psnr_mean_image"],
        "before": {"psnr": round(before["psnr"], 3), "active_units": before["active_units"], "rate": sick["rate_nats"]},
        "after": {"psnr": found["psnr"], "active_units": found["active_units"], "rate": found["rate_nats"]},
        "gain_db": round(gain, 3),
        "recovered": was_sick and gain >= WANTED_DB and 2 * found["active_units"] > found["latents"],
        "sick_steps": sick["steps"],
        "cure_steps": found["steps"],
    }


def main() -> None:
    options = read_options()
    chosen = [patient for patient in PATIENTS if patient.data in options.sets]
    sick = {sick_job(options, patient, seed): patient for patient in chosen for seed in options.seeds}
    figures = dict(train_all(list(sick), options.work_dir, options.processes, options.threads))
    cures = {cure_job(options, job): job for job in sick}
    rows = []
    for cure, found in train_all(list(cures), options.work_dir, options.processes, options.threads):
        job = cures[cure]
        rows.append(row(options, sick[job], cure, found, figures[job]))
        print(f"{rows[-1]['patient']}: {rows[-1]['gain_db']:+.2f} dB", flush=True)
    rows.sort(key=lambda entry: [job.name for job in sick].index(entry["patient"]))
    save(options, NAME, {"recovered": sum(entry["recovered"] for entry in rows), "of": len(rows), "patients": rows})
    shown = [
        [
            *(entry[key] for key in ("patient", "cause", "latents")),
            *(entry[when][key] for when in ("before", "after") for key in ("psnr", "active_units")),
            *(entry[key] for key in ("gain_db", "recovered")),
        ]
        for entry in rows
    ]
    table(["patient", "cause", "latents", "dB", "active", "dB after", "active after", "gain", "recovered"], shown)


if __name__ == "__main__":
    start(main)
