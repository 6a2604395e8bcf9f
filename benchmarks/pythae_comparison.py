"""Against pythae's VAE with its own defaults: the same images, latents, threads and wall-clock seconds.

    uv run --with pythae==0.1.2 benchmarks/pythae_comparison.py --data-dir FOLDER

Our run takes about --seconds, everything included; each of pythae's then gets as many seconds of training alone. pythae
is run with its default trainer (Adam, 1e-4, batch 64) and loss, with its default network (`mlp`) and with the
convolutional one that it ships for such images (`conv`). Reconstructions are decoded posterior means, for both. Samples
are compared by the sliced Wasserstein distance to validation images (Karras et al. 2018).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import logging
import time
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from runs import Job, images, pixels, train
from samples import drawn, opened, rebuilt
from script import overrides, parser, save, settle, source, start, table
from unified_vae.core.errors import EnvironmentProblem
from unified_vae.data.dataset import DataSets
from unified_vae.metrics.images import psnr
from unified_vae.metrics.sets import patch_distances
from unified_vae.models.density import NormalDensity

NAME = "pythae_comparison"
SETS = {"cifar10": 32, "faces128": 64}
PROBE_STEPS = 30  # to measure our speed with
SHARE = 0.8  # of the seconds for our steps; the rest is start, validation, export
NETWORKS = ("mlp", "conv")


def read_options() -> argparse.Namespace:
    options = parser(NAME, __doc__)
    options.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    options.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    options.add_argument("--seconds", type=float, default=300.0)
    options.add_argument("--latents", type=int, default=64)
    options.add_argument("--base-channels", type=int, default=32, help="of our network")
    options.add_argument("--batch-size", type=int, default=32, help="of our run")
    options.add_argument("--loss", default="mse_only", help="our loss preset")
    given = settle(options.parse_args())
    if given.quick:
        given.seconds, given.base_channels, given.sets = 5.0, 4, given.sets[:1]
    return given


def our_job(options: argparse.Namespace, name: str, seed: int, steps: int) -> Job:
    settings = {
        "data.source": source(options, name),
        **({"data.max_images": 300} if options.quick else {}),
        "seed": seed,
        "model.image_size": SETS[name],
        "model.latents": options.latents,
        "model.base_channels": options.base_channels,
        "training.batch_size": options.batch_size,
        "training.max_steps": steps,
        "training.epochs": 10_000,
        "training.validate_every_epochs": 5,
        "training.samples.every_epochs": 10_000,
        "training.log_every_steps": 10,
        "training.early_stopping.patience": None,
        **overrides(options),
    }
    return Job(f"{name}, {steps} steps, seed {seed}", settings, {"loss": options.loss, "model": "conv_64"}, keep=True)


def ours(options: argparse.Namespace, name: str, seed: int, data: DataSets) -> dict[str, Any]:
    """A run of as many steps as the seconds allow, at the speed of a short one."""
    probe = train(our_job(options, name, seed, PROBE_STEPS), options.work_dir)
    steps = max(int(SHARE * options.seconds * probe["images_per_second"] / options.batch_size), PROBE_STEPS + 1)
    job = our_job(options, name, seed, steps)
    found = train(job, options.work_dir)
    model, _ = opened(job.plan(options.work_dir).run_dir)
    validation = pixels(data.validation)
    count = min(len(validation), 1000)
    samples = {
        "N(0, I)": drawn(model, NormalDensity(model.latents), count, seed),
        model.density.describe(): drawn(model, model.density, count, seed),
    }
    return {
        "trainer": "unified-vae",
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": found["seconds"],
        "steps": found["steps"],
        "psnr": round(_psnr(rebuilt(model, validation), validation), 3),
        "sliced_wasserstein": _distances(samples, validation[:count]),
    }


def theirs(options: argparse.Namespace, name: str, seed: int, network: str, data: DataSets, seconds: float) -> Any:
    """pythae's trainer, stopped when the time is up."""
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback

    class TimeIsUp(Exception):
        pass

    class Clock(TrainingCallback):
        begun, steps = time.monotonic(), 0

        def on_train_begin(self, training_config: Any, **_: Any) -> None:
            self.begun = time.monotonic()

        def on_train_step_end(self, training_config: Any, **_: Any) -> None:
            self.steps += 1
            if time.monotonic() - self.begun >= seconds:
                raise TimeIsUp

    torch.manual_seed(seed)
    model = _their_model(network, SETS[name], options.latents)
    clock, folder = Clock(), options.work_dir / "pythae"
    config = BaseTrainerConfig(output_dir=str(folder), num_epochs=1_000_000, seed=seed, no_cuda=True)
    training = _three_channels(pixels(data.train))
    _load_optimizer()
    with contextlib.suppress(TimeIsUp), contextlib.redirect_stderr(io.StringIO()):  # its bars
        BaseTrainer(model, _their_dataset(training), training_config=config, callbacks=[clock]).train()
    return {"trainer": f"pythae {network}", "seconds": round(seconds, 1), "steps": clock.steps} | _measured(
        model.eval(), training, _three_channels(pixels(data.validation)), seed
    )


def _load_optimizer() -> None:
    """torch imports its compiler at the first step of any optimizer: seconds that are no one's training."""
    parameter = torch.zeros(1, requires_grad=True)
    parameter.sum().backward()
    torch.optim.Adam([parameter]).step()


def _their_model(network: str, size: int, latents: int) -> Any:
    from pythae.models import VAE, VAEConfig
    from pythae.models.nn.benchmarks import celeba, cifar

    config = VAEConfig(input_dim=(3, size, size), latent_dim=latents)
    if network == "mlp":
        return VAE(config)
    if size == 32:
        return VAE(config, cifar.Encoder_Conv_VAE_CIFAR(config), cifar.Decoder_Conv_AE_CIFAR(config))
    return VAE(config, celeba.Encoder_Conv_VAE_CELEBA(config), celeba.Decoder_Conv_AE_CELEBA(config))


def _their_dataset(pictures: Tensor) -> Any:
    from pythae.data.datasets import BaseDataset

    return BaseDataset(pictures, torch.zeros(len(pictures)))


@torch.no_grad()
def _measured(model: Any, training: Tensor, validation: Tensor, seed: int) -> dict[str, Any]:
    """Reconstruction of the validation images, and samples of both of its usual samplers."""
    from pythae.samplers import GaussianMixtureSampler, NormalSampler

    parts = [model.decoder(model.encoder(part).embedding)["reconstruction"] for part in validation.split(100)]
    count = min(len(validation), 1000)
    torch.manual_seed(seed)
    mixture = GaussianMixtureSampler(model)
    mixture.fit(training)
    samples = {
        "N(0, I)": NormalSampler(model).sample(count, batch_size=100),
        "its mixture of 10 Gaussians": mixture.sample(count, batch_size=100),
    }
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "psnr": round(_psnr(torch.cat(parts).clamp(0, 1), validation), 3),
        "sliced_wasserstein": _distances(samples, validation[:count]),
    }


def _psnr(pictures: Tensor, originals: Tensor) -> float:
    return psnr(float((pictures - originals).square().mean()))


def _distances(samples: dict[str, Tensor], real: Tensor) -> dict[str, float]:
    return {kind: round(patch_distances(real, some.cpu().clamp(0, 1))["mean"], 2) for kind, some in samples.items()}


def _three_channels(pictures: Tensor) -> Tensor:
    return pictures.expand(-1, 3, -1, -1).contiguous()


def main() -> None:
    logging.disable(logging.INFO)
    options = read_options()
    if importlib.util.find_spec("pythae") is None:
        raise EnvironmentProblem(f"pythae is not installed: uv run --with pythae==0.1.2 benchmarks/{NAME}.py")
    rows = []
    for name in options.sets:
        data = images(source(options, name), SETS[name], 300 if options.quick else None)
        for seed in options.seeds:
            found = [ours(options, name, seed, data)]
            seconds = found[0]["seconds"] or options.seconds
            found += [theirs(options, name, seed, network, data, seconds) for network in options.networks]
            rows += [{"set": name, "image_size": SETS[name], "seed": seed, **row} for row in found]
            for row in found:
                print(f"{name}, seed {seed}: {row}", flush=True)
    save(options, NAME, {"pythae": version("pythae"), "runs": rows})
    shown = [
        [f"{row['set']}, seed {row['seed']}", row["trainer"], row["seconds"], row["steps"], row["psnr"], kind, value]
        for row in rows
        for kind, value in row["sliced_wasserstein"].items()
    ]
    table(["set", "trainer", "seconds", "steps", "dB", "samples of", "sliced Wasserstein"], shown)


if __name__ == "__main__":
    start(main)
