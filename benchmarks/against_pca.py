"""Against PCA with as many components: has the network learned more than a linear map?

The PCA is exact, fitted on train/ and scored on val/: of the images alone, the line that the aims are over, and of the
images with their mirror images, which the runs see too. The runs are trained on train/ and scored on val/ by the
trainer itself, from the mean of the posterior, at the last step: their length is fixed before.
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
    """How a set is trained; chosen by what splits of train/ showed (docs/log.md)."""

    size: int
    steps: int
    batch_size: int
    lr: float
    weight_decay: float
    translate: float  # part of the side by which images are shifted at random
    base_channels: int
    pre_encoder_blocks: int
    refine_blocks: int


RECIPES = {
    "cifar10": Recipe(32, 12_000, 16, 2e-3, 0.05, 0.06, 64, 4, 4),
    "faces128": Recipe(64, 800, 32, 1e-3, 0.0, 0.0, 32, 2, 4),
}


def read_options() -> argparse.Namespace:
    options = parser(NAME, __doc__)
    options.add_argument("--sets", nargs="+", choices=RECIPES, default=list(RECIPES))
    options.add_argument("--latents", nargs="+", type=int, default=list(TARGETS))
    options.add_argument("--steps", type=int, help="instead of each recipe's")
    given = settle(options.parse_args())
    if given.quick:
        given.latents, given.steps = given.latents[:1], 4
    return given


def job(options: argparse.Namespace, name: str, latents: int, seed: int) -> Job:
    recipe = RECIPES[name]
    settings = {
        "data.source": source(options, name),
        "data.augment.horizontal_flip": True,
        "data.augment.affine.translate": recipe.translate,
        "seed": seed,
        "model.image_size": recipe.size,
        "model.latents": latents,
        "model.base_channels": recipe.base_channels,
        "model.pre_encoder_blocks": recipe.pre_encoder_blocks,
        "model.refine_blocks": recipe.refine_blocks,
        "training.max_steps": options.steps or recipe.steps,
        "training.epochs": 10_000,
        "training.validate_every_epochs": 4,
        "training.lr_schedule.kind": "cosine",
        "training.lr_schedule.warmup": 0.05,
        "training.batch_size": recipe.batch_size,
        "training.optimizer.lr": recipe.lr,
        "training.optimizer.weight_decay": recipe.weight_decay,
        "training.early_stopping.patience": None,
        **overrides(options),
    }
    return Job(f"{name}, {latents} latents, seed {seed}", settings, {"loss": "mse_only"}, keep=True)


Lines = dict[int, tuple[float, float]]
"""Components -> dB of the PCA of the images, and of that of the images and their mirror images."""


def pca_psnr(source: str, size: int, counts: list[int]) -> Lines:
    """dB on the validation images of exact PCAs of the training images."""
    data = images(source, size)
    train, validation = pixels(data.train), pixels(data.validation).flatten(1).double()
    found = []
    for some in (train, torch.cat([train, train.flip(3)])):
        rows = some.flatten(1).double()
        mean = rows.mean(0)
        rows -= mean
        by_products = rows.shape[1] <= len(rows)
        vectors = torch.linalg.eigh(rows.T @ rows)[1].flip(1).T if by_products else torch.linalg.svd(rows, False)[2]
        found.append({count: _psnr(validation, mean, vectors[:count]) for count in counts})
    return {count: (found[0][count], found[1][count]) for count in counts}


def _psnr(validation: torch.Tensor, mean: torch.Tensor, basis: torch.Tensor) -> float:
    rebuilt = ((validation - mean) @ basis.T @ basis + mean).clamp(0, 1)
    return -10 * math.log10(float((rebuilt - validation).square().mean()))


def row(name: str, seed: int, line: tuple[float, float], found: dict[str, Any]) -> dict[str, Any]:
    pca, mirrored = line
    gain = found["psnr_last"] - pca
    gains = {"pca": pca, "gain": gain, "pca_mirrored": mirrored, "gain_over_mirrored": found["psnr_last"] - mirrored}
    met = gain >= TARGETS.get(found["latents"], 0.0)
    return {"set": name, "seed": seed, **{key: round(db, 2) for key, db in gains.items()}, "target_met": met, **found}


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
        rows.append(row(name, seed, lines[name][latents], found))
        print(f"{len(rows)}/{len(jobs)} {done.name}: {rows[-1]['gain']:+.2f} dB over PCA", flush=True)
        rows.sort(key=lambda entry: (entry["set"], entry["latents"], entry["seed"]))
        save(options, NAME, {"recipes": {name: vars(RECIPES[name]) for name in options.sets}, "runs": rows})
    headings = ["set", "latents", "seed", "PCA dB", "ours dB", "gain", "over mirrored", "target", "KL nats", "seconds"]
    keys = ["set", "latents", "seed", "pca", "psnr_last", "gain", "gain_over_mirrored"]
    shown = [
        [*(entry[key] for key in keys), TARGETS.get(entry["latents"], 0.0), entry["rate_nats"], entry["seconds"]]
        for entry in rows
    ]
    table(headings, shown)


if __name__ == "__main__":
    start(main)
