"""Sample quality of runs: latents drawn from N(0, I) against the density fitted to the posteriors of training images.

Two distances to the validation images, for as many pictures of each kind: sliced Wasserstein of patches, which needs no
features (Karras et al. 2018), and Fréchet in the features of a small classifier of the CIFAR-10 classes, trained here.
`training images` is the distance that a perfect generator would have; `reconstructions` bounds what the decoder can do.
Give folders of finished runs with --run; without it a run is made for each of --sets.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from frechet import SIZE, accuracy, features, frechet_distance, train_classifier
from runs import Job, images, pixels, train_all
from script import overrides, parser, save, settle, source, start, table
from unified_vae.config.data import DataConfig
from unified_vae.core.errors import ConfigError
from unified_vae.core.run_dir import RunFolder
from unified_vae.data.dataset import DataSets
from unified_vae.data.prepare import open_data
from unified_vae.metrics.sets import patch_distances
from unified_vae.models.density import LatentDensity, NormalDensity
from unified_vae.models.pretrained import load_pretrained
from unified_vae.models.vae import VAE

NAME = "samples"
SETS = {"cifar10": 32, "faces128": 64}
PIECE = 100  # pictures decoded at once


def read_options() -> argparse.Namespace:
    options = parser(NAME, __doc__)
    options.add_argument("--run", type=Path, nargs="+", help="folders of finished runs")
    options.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="without --run")
    options.add_argument("--epochs", type=int, default=20, help="without --run")
    options.add_argument("--latents", type=int, default=128, help="without --run")
    options.add_argument("--base-channels", type=int, default=32, help="without --run")
    options.add_argument("--temperatures", type=float, nargs="+", default=[1.0], help="of the fitted density")
    options.add_argument("--count", type=int, default=1000, help="pictures of each kind, at most; so many as validate")
    options.add_argument("--classifier-epochs", type=int, default=12)
    given = settle(options.parse_args())
    if given.quick:
        given.epochs, given.latents, given.base_channels, given.sets = 1, 16, 4, given.sets[:1]
        given.count, given.classifier_epochs = 50, 1
    return given


def made(options: argparse.Namespace) -> dict[str, Path]:
    """The runs to look at, by name: those given, or one of each set and seed."""
    if options.run:
        return {folder.name: folder for folder in options.run}
    jobs = [_job(options, name, seed) for name in options.sets for seed in options.seeds]
    done = [job for job, _ in train_all(jobs, options.work_dir, options.processes, options.threads)]
    return {job.name: job.plan(options.work_dir).run_dir for job in sorted(done, key=jobs.index)}


def _job(options: argparse.Namespace, name: str, seed: int) -> Job:
    settings = {
        "data.source": source(options, name),
        "seed": seed,
        "model.image_size": SETS[name],
        "model.latents": options.latents,
        "model.base_channels": options.base_channels,
        "training.epochs": options.epochs,
        **({"data.max_images": 200} if options.quick else {}),
        **overrides(options),
    }
    return Job(f"{name}, seed {seed}", settings, keep=True)


def opened(run_dir: Path) -> tuple[VAE, DataSets]:
    """The exported model of a run, and the images that it was trained on.

    Raises:
        ConfigError: the folder is not that of a finished run.
    """
    folder = RunFolder(run_dir)
    if not folder.config.is_file():
        raise ConfigError(f"{run_dir} is not the folder of a run: give --run one that holds config.json and model/.")
    config = json.loads(folder.config.read_text(encoding="utf-8"))["config"]
    model = load_pretrained(folder.model)
    data = open_data(DataConfig.model_validate(config["data"]), model.image_size, model.channels, lambda *_: None)
    return model, data


@torch.no_grad()
def drawn(model: VAE, density: LatentDensity, count: int, seed: int, temperature: float = 1.0) -> Tensor:
    """`count` new pictures [count, channels, size, size], clipped."""
    latents = density.sample(count, torch.Generator().manual_seed(seed), temperature)
    return torch.cat([model.decode(part).clamp(0, 1) for part in latents.split(PIECE)])


@torch.no_grad()
def rebuilt(model: VAE, pictures: Tensor) -> Tensor:
    """Decoded posterior means, clipped."""
    return torch.cat([model(part).reconstruction.clamp(0, 1) for part in pictures.split(PIECE)])


def kinds(model: VAE, data: DataSets, count: int, seed: int, temperatures: list[float]) -> dict[str, Tensor]:
    """The pictures to be compared with the first `count` validation images."""
    train = pixels(data.train)
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:count]
    fitted = {
        f"{model.density.describe()}, temperature {t:g}": drawn(model, model.density, count, seed, t)
        for t in temperatures
    }
    return {
        "training images": train[chosen],
        "reconstructions": rebuilt(model, pixels(data.validation)[:count]),
        "N(0, I)": drawn(model, NormalDensity(model.latents), count, seed),
        **(fitted if model.density.kind != "normal" else {}),
    }


def compared(net: nn.Sequential, real: Tensor, pictures: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Both distances of each kind to the real images; nan where a kind has too few pictures."""
    rows = []
    for kind, some in pictures.items():
        count = min(len(some), len(real))
        patches = patch_distances(real[:count], some[:count])
        frechet = frechet_distance(features(net, real[:count]), features(net, some[:count]))
        levels = {level: round(value, 2) for level, value in patches.items()}
        rows.append({"kind": kind, "count": count, "sliced_wasserstein": levels, "frechet": round(frechet, 3)})
    return rows


def cifar_classifier(options: argparse.Namespace) -> tuple[nn.Sequential, float]:
    """The network whose features are compared, and its accuracy on the validation images."""
    data = images(source(options, "cifar10"), SIZE, 500 if options.quick else None)
    train, validation = data.train.labels, data.validation.labels
    assert train is not None and validation is not None
    net = train_classifier(pixels(data.train), torch.from_numpy(train["class"]), options.classifier_epochs)
    part = accuracy(net, pixels(data.validation), torch.from_numpy(validation["class"]))
    print(f"classifier: {part:.1%} of the validation images right", flush=True)
    return net, part


def main() -> None:
    options = read_options()
    runs = made(options)
    net, part = cifar_classifier(options)
    rows: list[dict[str, Any]] = []
    for name, folder in runs.items():
        model, data = opened(folder)
        count = min(options.count, len(data.validation), len(data.train))
        pictures = kinds(model, data, count, options.seeds[0], options.temperatures)
        found = compared(net, pixels(data.validation)[:count], pictures)
        rows += [{"run": name, "image_size": model.image_size, "latents": model.latents, **row} for row in found]
    payload = {"classifier_accuracy": round(part, 4), "classifier_epochs": options.classifier_epochs, "samples": rows}
    save(options, NAME, payload)
    shown = [[row["run"], row["kind"], row["sliced_wasserstein"]["mean"], row["frechet"]] for row in rows]
    table(["run", "kind", "sliced Wasserstein, 1e-3", "Fréchet"], shown)
    if any(math.isnan(row["frechet"]) for row in rows):
        raise ConfigError("too few pictures for a covariance: give a run of more validation images.")


if __name__ == "__main__":
    start(main)
