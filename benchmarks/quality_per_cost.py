"""Which model family learns most in the same time: PSNR on val/ after equal seconds of the processor.

A step of each model is timed first: in turns, in this process, in seconds of the processor (median), so that other work
on the machine falls on all of them alike. The runs then take as many steps as the seconds allow at that speed, so it
does not matter how busy the machine is while they train. Validation, start and export are on nobody's account.
Each run ends its learning-rate schedule with its time.
With and without the PCA start, since the start alone gives most of what a short run reaches.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from torch.nn import functional as F

from runs import NOT_ASKED, Job, train_all
from script import overrides, parser, save, settle, source, start, table
from unified_vae.cli.app import keep_freed_memory
from unified_vae.models.build import build_model


def _residual(channels: int, **blocks: int) -> dict[str, object]:
    shape = {"family": "residual", "base_channels": channels, "max_multiplier": 2, **blocks}
    return {f"model.{name}": value for name, value in shape.items()}


NAME = "quality_per_cost"
BASELINE = "conv"
ENTRANTS: dict[str, dict[str, object]] = {
    "conv": {"model.family": "conv", "model.base_channels": 64},
    "residual": _residual(32, pre_encoder_blocks=2, refine_blocks=4),
    "residual, 64 channels": _residual(64, pre_encoder_blocks=1, refine_blocks=2),
}
SIZES = {"faces128": 64, "cifar10": 32}
TARGET = 0.7


def read_options() -> argparse.Namespace:
    options = parser(NAME, __doc__)
    options.add_argument("--sets", nargs="+", default=list(SIZES))
    options.add_argument("--image-size", type=int, help="instead of each set's")
    options.add_argument("--entrants", nargs="+", choices=ENTRANTS, default=list(ENTRANTS))
    options.add_argument("--starts", nargs="+", choices=["pca", "random"], default=["pca", "random"])
    options.add_argument("--minutes", nargs="+", type=float, default=[5.0, 15.0])
    options.add_argument("--latents", type=int, default=256)
    options.add_argument("--batch-size", type=int, default=32)
    given = settle(options.parse_args())
    if given.quick:
        given.sets, given.minutes, given.entrants = given.sets[:1], [0.05], given.entrants[:2]
    return given


def settings_of(options: argparse.Namespace, about: dict[str, Any]) -> dict[str, object]:
    return {
        "data.source": source(options, about["set"]),
        "data.augment.horizontal_flip": True,
        "seed": about["seed"],
        "model.image_size": options.image_size or SIZES[about["set"]],
        "model.latents": options.latents,
        "model.pca_init": about["start"] == "pca",
        **ENTRANTS[about["entrant"]],
        "training.batch_size": options.batch_size,
        "training.epochs": 10_000,
        "training.validate_every_epochs": 4,
        "training.early_stopping.patience": None,
        "training.lr_schedule.kind": "cosine",
        "training.lr_schedule.warmup": 0.05,
        **NOT_ASKED,
        **overrides(options),
    }


def costs(
    options: argparse.Namespace, settings: dict[str, dict[str, object]], rounds: int
) -> dict[str, dict[str, float]]:
    """Seconds of the processor of a step, and trained parameters, of each entrant; forward, backward and AdamW."""
    keep_freed_memory()  # as a run does
    found: dict[str, dict[str, float]] = {}
    takers, seconds = {}, {name: [] for name in settings}
    for name, values in settings.items():
        model = _model(options, values)
        trained = [p for p in model.parameters() if p.requires_grad]
        found[name] = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "trained": sum(p.numel() for p in trained),
        }
        takers[name] = _Taker(model, torch.optim.AdamW(trained, lr=1e-5, fused=True), options.batch_size)
    for number in range(rounds + 1):
        for name, take in takers.items():
            begun = time.process_time()
            take()
            if number:  # the first one sets up
                seconds[name].append(time.process_time() - begun)
    return {name: {**found[name], "seconds_a_step": statistics.median(seconds[name])} for name in settings}


def _model(options: argparse.Namespace, values: dict[str, object]) -> Any:
    config = Job("costs", values).plan(options.work_dir).run.config.model
    return build_model(config.model_copy(update={"channels": 3}), seed=0)


class _Taker:
    """Takes one step on random images."""

    def __init__(self, model: Any, optimizer: torch.optim.Optimizer, batch_size: int) -> None:
        self.model, self.optimizer = model, optimizer
        self.images = torch.rand(batch_size, model.channels, model.image_size, model.image_size)
        self.noise = torch.randn(batch_size, model.latents)

    def __call__(self) -> None:
        output = self.model(self.images, self.noise)
        loss = F.mse_loss(output.reconstruction, self.images) + 1e-3 * output.posterior.kl_per_unit().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def main() -> None:
    options = read_options()
    rows, jobs, about = [], [], {}
    for name in options.sets:
        for how in options.starts:
            entries = [{"set": name, "start": how, "entrant": one, "seed": 0} for one in options.entrants]
            cost = costs(options, {e["entrant"]: settings_of(options, e) for e in entries}, 2 if options.quick else 9)
            for entry in [e | {"seed": seed} for e in entries for seed in options.seeds]:
                for minutes in options.minutes:
                    speed = cost[entry["entrant"]]
                    steps = max(2, int(60 * minutes / speed["seconds_a_step"]))
                    label = f"{name}, {how} start, {entry['entrant']}, {minutes:g} min, seed {entry['seed']}"
                    settings = settings_of(options, entry) | {"training.max_steps": steps}
                    jobs.append(Job(label, settings, {"loss": "mse_only"}))
                    about[label] = entry | {"minutes": minutes} | speed
                    print(f"{label}: {steps:,} steps of {speed['seconds_a_step']:.2f} s", flush=True)
    for job, found in train_all(jobs, options.work_dir, options.processes, options.threads):
        rows.append(about[job.name] | found)
        print(f"{job.name}: {found['psnr']:.2f} dB", flush=True)
        report(options, rows)


def report(options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Print and save what there is so far: a stopped benchmark keeps its figures."""
    keys = ("set", "start", "minutes", "seed")
    base = {tuple(row[key] for key in keys): row["psnr"] for row in rows if row["entrant"] == BASELINE}
    for row in rows:
        known = base.get(tuple(row[key] for key in keys))
        row["gain_db"] = None if known is None else round(row["psnr"] - known, 3)
    shown = [
        [
            f"{row['set']}, {row['start']} start, {row['minutes']:g} min",
            row["entrant"],
            row["trained"] / 1e6,
            row["steps"],
            row["psnr"],
            row["gain_db"],
        ]
        for row in rows
    ]
    table(["set", "entrant", "trained M", "steps", "dB", "over conv"], shown)
    save(options, NAME, {"target_db": TARGET, "runs": rows})


if __name__ == "__main__":
    start(main)
