"""Our objective against that of the predecessor: mean squared error + beta * KL summed over latents, beta 1.

Both train the same network, without the PCA start, from the same weights on the same batches with the same noise and
optimizer; only the loss differs. The loop is written out here, so that nothing else of the trainer takes part.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from runs import images
from script import parser, save, settle, source, start, table
from unified_vae.config.presets import PresetBook, from_command_line
from unified_vae.config.run import RunConfig
from unified_vae.config.schedule import factor
from unified_vae.core.distributions import VAEOutput
from unified_vae.core.rng import key, latent_noise
from unified_vae.data.batches import steps_per_epoch, train_batches, validation_batches
from unified_vae.data.dataset import DataSets
from unified_vae.losses.build import build_objective
from unified_vae.losses.kl import kl_per_image
from unified_vae.metrics.images import ReconstructionSums
from unified_vae.metrics.latents import LatentSums
from unified_vae.models.build import build_model
from unified_vae.models.vae import VAE
from unified_vae.optim.build import build_optimizers
from unified_vae.optim.lr import lr_factor

NAME = "predecessor"
SETS = {"cifar10": 32, "faces128": 64}
CPU = torch.device("cpu")
Loss = Callable[[VAEOutput, Tensor, float], Tensor]


def ours(config: RunConfig, channels: int) -> Loss:
    """The calibrated objective of the preset, as the trainer steps it: a scale first, then its running mean."""
    objective = build_objective(config.loss, channels, config.model.image_size)

    def loss(output: VAEOutput, pictures: Tensor, progress: float) -> Tensor:
        if objective.observations == 0:
            objective.observe(objective.measure(output, pictures))
        value = objective(output, pictures, progress)
        objective.observe(value.terms)
        return value.loss

    return loss


def predecessor(config: RunConfig, channels: int) -> Loss:
    """mean(MSE) + beta * sum(KL) at beta 1, with the schedule of beta of the preset."""

    def loss(output: VAEOutput, pictures: Tensor, progress: float) -> Tensor:
        error = (output.reconstruction - pictures).square().mean()
        return error + factor(config.loss.kl.schedule, progress) * kl_per_image(output.posterior).mean()

    return loss


def trained(config: RunConfig, data: DataSets, loss_of: Loss) -> VAE:
    """The network after all steps."""
    training, count = config.training, len(data.train)
    model = build_model(config.model.model_copy(update={"channels": data.channels}), seed=key(config.seed, "weights"))
    optimizer = build_optimizers(training.optimizer, model, fused=False)["main"]
    total = training.epochs * steps_per_epoch(count, training.batch_size)
    batches = train_batches(data.train, seed=config.seed, start_step=0, end_step=total, batch_size=training.batch_size)
    for step, batch in enumerate(batches):
        pictures = batch.images.float() / 255
        noise = latent_noise(config.seed, step, len(pictures), model.latents, 0, 1, CPU)
        loss = loss_of(model(pictures, noise), pictures, step / total)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.max_grad_norm or float("inf"))
        for group in optimizer.param_groups:
            group["lr"] = training.optimizer.lr * lr_factor(training.lr_schedule, (step + 1) / total, 0)
        optimizer.step()
    return model.eval()


@torch.no_grad()
def measured(model: VAE, data: DataSets) -> dict[str, float]:
    """PSNR, that of the mean image, rate and active units on the validation images."""
    pictures = ReconstructionSums.empty(model.channels, model.image_size, CPU, torch.float64)
    latents = LatentSums.empty(model.latents, CPU, torch.float64)
    for raw in validation_batches(data.validation, batch_size=64):
        output = model(raw.float() / 255)
        pictures.add(output.reconstruction, raw.float() / 255)
        latents.add(output.posterior)
    return {
        "psnr": round(pictures.psnr(), 3),
        "psnr_mean_image": round(pictures.mean_image_psnr(), 3),
        "rate_nats": round(latents.rate(), 4),
        "active_units": int(latents.active().sum()),
    }


def config_of(options: argparse.Namespace, name: str, seed: int) -> RunConfig:
    """The shipped `mse_only` on one of the sets."""
    words = [
        f"seed={seed}",
        f"training.epochs={options.epochs}",
        f"training.batch_size={options.batch_size}",
        f"model.image_size={SETS[name]}",
        f"model.latents={options.latents}",
        f"model.base_channels={options.base_channels}",
        "model.pca_init=false",  # it starts from the objective's own optimum
        *options.set,
    ]
    presets = {"loss": "mse_only", "training": "standard_training", "model": "conv_64", "dataset": "full"}
    return PresetBook.load().compose(presets, from_command_line({}, words)).config


def compare(options: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """Both objectives on one set with one seed."""
    config = config_of(options, name, seed)
    data = images(source(options, name), SETS[name], 128 if options.quick else None)
    sides = {}
    for side in (ours, predecessor):
        sides[side.__name__] = measured(trained(config, data, side(config, data.channels)), data)
        print(f"{name}, seed {seed}, {side.__name__}: {sides[side.__name__]}", flush=True)
    gain = round(sides["ours"]["psnr"] - sides["predecessor"]["psnr"], 3)
    return {"set": name, "seed": seed, "image_size": SETS[name], "gain_db": gain, **sides}


def main() -> None:
    options = parser(NAME, __doc__)
    options.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    options.add_argument("--epochs", type=int, default=10)
    options.add_argument("--batch-size", type=int, default=32)
    options.add_argument("--latents", type=int, default=128)
    options.add_argument("--base-channels", type=int, default=32)
    given = settle(options.parse_args())
    if given.quick:
        given.epochs, given.base_channels, given.latents, given.sets = 2, 4, 16, given.sets[:1]
    pairs = [compare(given, name, seed) for name in given.sets for seed in given.seeds]
    save(given, NAME, {"smallest_gain_db": min(pair["gain_db"] for pair in pairs), "pairs": pairs})
    rows = [[p["set"], p["seed"], p["ours"]["psnr"], p["predecessor"]["psnr"], p["gain_db"]] for p in pairs]
    table(["set", "seed", "ours, dB", "predecessor, dB", "gain, dB"], rows)


if __name__ == "__main__":
    start(main)
