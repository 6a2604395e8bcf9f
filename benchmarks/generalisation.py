"""What raises validation PSNR where images are few: the augmentation presets, weight decay, averaged weights.

Each run changes one thing against mirroring alone. With --select the images that are scored are a part of train/.
"""

from __future__ import annotations

import argparse
from typing import Any

from runs import NOT_ASKED, Job, train_all
from script import overrides, parser, save, settle, source, start, table

NAME = "generalisation"
SETS = {"cifar10": 32, "faces128": 64}
TRIALS: dict[str, tuple[str, dict[str, object]]] = {
    "no augmentation": ("none", {}),
    "flip": ("flip", {}),
    "gentle": ("gentle", {}),
    "strong": ("strong", {}),
    "flip, weight decay 0.1": ("flip", {"training.optimizer.weight_decay": 0.1}),
    "flip, averaged over fewer steps (0.9)": ("flip", {"training.ema_decay": 0.9}),
    "flip, half the channels": ("flip", {"model.base_channels": 16}),
}


def job(options: argparse.Namespace, name: str, trial: str, seed: int) -> Job:
    augment, change = TRIALS[trial]
    settings = {
        "data.source": source(options, name),
        "data.max_images": 200 if options.quick else options.images,
        "seed": seed,
        "model.image_size": SETS[name],
        "model.latents": options.latents,
        "model.base_channels": options.base_channels,
        "training.epochs": options.epochs,
        "training.batch_size": 32,
        "training.early_stopping.patience": None,
        **NOT_ASKED,
        **change,
        **overrides(options),
    }
    return Job(f"{name}, {trial}, seed {seed}", settings, {"loss": "mse_only", "augment": augment})


def main() -> None:
    options = parser(NAME, __doc__)
    options.add_argument("--sets", nargs="+", choices=SETS, default=["faces128"])
    options.add_argument("--trials", nargs="+", choices=TRIALS, default=list(TRIALS))
    options.add_argument("--images", type=int, help="to train on, at most")
    options.add_argument("--latents", type=int, default=64)
    options.add_argument("--base-channels", type=int, default=32)
    options.add_argument("--epochs", type=int, default=16)
    given = settle(options.parse_args())
    if given.quick:
        given.epochs, given.base_channels, given.latents, given.trials = 1, 4, 8, given.trials[:2]
    planned: dict[str, dict[str, Any]] = {}
    jobs = []
    for name in given.sets:
        for trial in given.trials:
            for seed in given.seeds:
                jobs.append(job(given, name, trial, seed))
                planned[jobs[-1].name] = {"set": name, "trial": trial, "seed": seed}
    rows = []
    for number, (done, found) in enumerate(train_all(jobs, given.work_dir, given.processes, given.threads), start=1):
        rows.append(planned[done.name] | found)
        print(f"{number}/{len(jobs)} {done.name}: {found['psnr']:.2f} dB", flush=True)
    rows.sort(key=lambda row: (row["set"], row["seed"], list(TRIALS).index(row["trial"])))
    save(given, NAME, {"runs": rows})
    table(["set", "trial", "seed", "dB"], [[row["set"], row["trial"], row["seed"], row["psnr"]] for row in rows])


if __name__ == "__main__":
    start(main)
