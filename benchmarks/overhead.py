"""What looking costs: the part of a run's time that the pre-flight, the self-test and the diagnosis take.

One run under Python's profiler, whose own cost falls mostly on the Python around the tensors. Time in a part is that of
all calls into its files from elsewhere, with all that they call. The pre-flight is also timed alone, on a whole set.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import shutil
import time
from typing import Any

import torch

from runs import Job, images, train
from script import overrides, parser, save, settle, source, start, table
from unified_vae.analysis.preflight import run_preflight

NAME = "overhead"
PARTS = {
    "pre-flight": ("analysis/preflight.py",),
    "self-test": ("training/train_step.py:refuse_dead_terms",),
    "diagnosis in validation": ("metrics/latents.py", "metrics/images.py"),
    "diagnosis at the end": ("pipeline/finalize.py:diagnose_run", "analysis/diagnosis.py"),
}
OTHERS = {
    "all of validation": ("training/validation.py",),
    "latent density": ("pipeline/finalize.py:fit_latent_density",),
    "sample images": ("inference/image_grids.py",),
    "checkpoints": ("training/checkpointer.py",),
}
TARGET = 0.02


def read_options() -> argparse.Namespace:
    options = parser(NAME, __doc__)
    options.add_argument("--data", default="cifar10", help="of the profiled run")
    options.add_argument("--image-size", type=int, default=32)
    options.add_argument("--latents", type=int, default=128)
    options.add_argument("--base-channels", type=int, default=32)
    options.add_argument("--epochs", type=int, default=20, help="as the preset fast_training")
    options.add_argument("--preflight-set", default="cifar10", help="10,000 images: 9,000 train, 1,000 validate")
    options.add_argument("--preflight-size", type=int, default=64)
    options.add_argument("--preflight-latents", type=int, default=256)
    given = settle(options.parse_args())
    if given.quick:
        given.epochs, given.base_channels, given.latents = 1, 4, 16
    return given


def job(options: argparse.Namespace, seed: int) -> Job:
    settings = {
        "data.source": source(options, options.data),
        "seed": seed,
        "model.image_size": options.image_size,
        "model.latents": options.latents,
        "model.base_channels": options.base_channels,
        "training.epochs": options.epochs,
        **({"data.max_images": 300} if options.quick else {}),
        **overrides(options),
    }
    return Job(f"profiled, seed {seed}", settings)


def profiled(options: argparse.Namespace, seed: int) -> tuple[pstats.Stats, float]:
    """A run from its first step to its last, whatever an earlier benchmark left."""
    some = job(options, seed)
    config, run_dir = some.plan(options.work_dir).run.config, some.plan(options.work_dir).run_dir
    images(config.data.source, options.image_size, config.data.max_images)  # decoding belongs to no run
    shutil.rmtree(run_dir, ignore_errors=True)
    profile, begun = cProfile.Profile(), time.monotonic()
    profile.runcall(train, some, options.work_dir)
    return pstats.Stats(profile), time.monotonic() - begun


def seconds_in(stats: pstats.Stats, places: tuple[str, ...]) -> float:
    """Of all calls into these files of the package, or functions (`file:function`), from outside them."""
    ends = tuple(f"unified_vae/{place}" for place in places)

    def inside(function: tuple[str, int, str]) -> bool:
        file = function[0].replace("\\", "/")
        return file.endswith(ends) or f"{file}:{function[2]}".endswith(ends)

    edges: dict[Any, Any] = stats.stats  # type: ignore[attr-defined]
    return sum(
        caller_times[3]
        for function, (_, _, _, _, callers) in edges.items()
        if inside(function)
        for caller, caller_times in callers.items()
        if not inside(caller)
    )


def preflight_alone(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the pre-flight of a whole set."""
    some = Job(
        "pre-flight",
        {
            "data.source": source(options, options.preflight_set),
            "model.image_size": options.preflight_size,
            "model.latents": options.preflight_latents,
            **({"data.max_images": 300} if options.quick else {}),
        },
    )
    config = some.plan(options.work_dir).run.config
    data = images(config.data.source, options.preflight_size, config.data.max_images)
    flight, _ = run_preflight(config, data, torch.device("cpu"))
    return {
        "set": options.preflight_set,
        "training_images": len(data.train),
        "validation_images": len(data.validation),
        "image_size": options.preflight_size,
        "latents": options.preflight_latents,
        "seconds": round(flight.seconds, 2),
    }


def measured(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    stats, seconds = profiled(options, seed)

    def shares(parts: dict[str, tuple[str, ...]]) -> dict[str, dict[str, float]]:
        found = {name: seconds_in(stats, files) for name, files in parts.items()}
        return {name: {"seconds": round(s, 3), "share": round(s / seconds, 5)} for name, s in found.items()}

    looking, others = shares(PARTS), shares(OTHERS)
    share = sum(entry["share"] for entry in looking.values())
    return {
        "seed": seed,
        "seconds": round(seconds, 1),
        "share": round(share, 5),
        "target_met": share < TARGET,
        "looking": looking,
        "others": others,
    }


def main() -> None:
    options = read_options()
    alone = preflight_alone(options)
    rows = [measured(options, seed) for seed in options.seeds]
    save(options, NAME, {"target_share": TARGET, "preflight": alone, "runs": rows})
    for entry in rows:
        parts = [*entry["looking"].items(), *entry["others"].items()]
        shown = [[name, part["seconds"], f"{part['share']:.2%}"] for name, part in parts]
        table(["part", "seconds", "share"], [*shown, ["the first four", None, f"{entry['share']:.2%}"]])
        print(f"of a run of {entry['seconds']:.0f} s, seed {entry['seed']}")
    print(f"\npre-flight alone: {json.dumps(alone)}")


if __name__ == "__main__":
    start(main)
