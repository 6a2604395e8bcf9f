"""Against PCA with as many components: has the network learned more than a linear map?

The PCA is exact, fitted on train/ without augmentation and scored on val/. The runs are trained on train/ and scored
on val/ by the trainer itself, from the mean of the posterior.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import Any

import torch

from runs import Job, images, pixels, train_all
from script import overrides, parser, save, settle, source, start, table

NAME = "against_pca"
TARGETS = {64: 1.0, 128: 1.0, 256: 0.3, 512: 0.0}  # dB over PCA


@dataclass(frozen=True)
class Recipe:
    """How a set is trained; chosen on splits of train/ (docs/log.md)."""

    size: int
    epochs: int
    batch_size: int
    base_channels: int


RECIPES = {"cifar10": Recipe(32, 12, 64, 64), "faces128": Recipe(64, 20, 32, 32)}


def read_options() -> argparse.Namespace:
    options = parser(NAME, __doc__)
    options.add_argument("--sets", nargs="+", choices=RECIPES, default=list(RECIPES))
    options.add_argument("--latents", nargs="+", type=int, default=list(TARGETS))
    options.add_argument("--epochs", type=int, help="instead of each recipe's")
    given = settle(options.parse_args())
    if given.quick:
        given.latents, given.epochs = given.latents[:1], 1
    return given


def job(options: argparse.Namespace, name: str, latents: int, seed: int) -> Job:
    recipe = RECIPES[name]
    settings = {
        "data.source": source(options, name),
        "data.augment.horizontal_flip": True,
        "seed": seed,
        "model.image_size": recipe.size,
        "model.latents": latents,
        "model.base_channels": recipe.base_channels,
        "training.epochs": options.epochs or recipe.epochs,
        "training.batch_size": recipe.batch_size,
        "training.early_stopping.patience": None,
        **overrides(options),
    }
    return Job(f"{name}, {latents} latents, seed {seed}", settings, {"loss": "mse_only"}, keep=True)


def pca_psnr(source: str, size: int, counts: list[int]) -> dict[int, float]:
    """dB on the validation images of exact PCAs of the training images."""
    data = images(source, size)
    train, validation = pixels(data.train).flatten(1).double(), pixels(data.validation).flatten(1).double()
    mean = train.mean(0)
    vectors = torch.linalg.svd(train - mean, full_matrices=False)[2]
    found = {}
    for count in counts:
        basis = vectors[:count]
        rebuilt = ((validation - mean) @ basis.T @ basis + mean).clamp(0, 1)
        found[count] = -10 * math.log10(float((rebuilt - validation).square().mean()))
    return found


def row(name: str, latents: int, seed: int, pca: float, found: dict[str, Any]) -> dict[str, Any]:
    gain = found["psnr"] - pca
    met = gain >= TARGETS.get(latents, 0.0)
    return {"set": name, "seed": seed, "pca": round(pca, 2), "gain": round(gain, 2), "target_met": met, **found}


def main() -> None:
    options = read_options()
    lines = {name: pca_psnr(source(options, name), RECIPES[name].size, options.latents) for name in options.sets}
    planned = {
        job(options, name, latents, seed).name: (name, latents, seed)
        for seed in options.seeds
        for latents in options.latents
        for name in options.sets
    }
    jobs = [job(options, *about) for about in planned.values()]
    rows = []
    for done, found in train_all(jobs, options.work_dir, options.processes, options.threads):
        name, latents, seed = planned[done.name]
        rows.append(row(name, latents, seed, lines[name][latents], found))
        print(f"{len(rows)}/{len(jobs)} {done.name}: {rows[-1]['gain']:+.2f} dB over PCA", flush=True)
    rows.sort(key=lambda entry: (entry["set"], entry["latents"], entry["seed"]))
    save(options, NAME, {"recipes": {name: vars(RECIPES[name]) for name in options.sets}, "runs": rows})
    headings = ["set", "latents", "seed", "PCA dB", "ours dB", "gain", "target", "KL nats", "seconds"]
    keys = ["set", "latents", "seed", "pca", "psnr", "gain"]
    shown = [
        [*(entry[key] for key in keys), TARGETS.get(entry["latents"], 0.0), entry["rate_nats"], entry["seconds"]]
        for entry in rows
    ]
    table(headings, shown)


if __name__ == "__main__":
    start(main)
