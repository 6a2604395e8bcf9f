"""The golden runs: tiny trainings and what is done with their models, through the command line and the class VAE alone.

Settings are written as version 0.1.0 spells them. `RENAMED` has the later names of those that were renamed, and
`METRICS` the names of what metrics.jsonl tells: a rename adds a word here and changes nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

RENAMED = {
    "training.accumulate": "training.gradient_accumulation_steps",
    "training.clip_norm": "training.max_grad_norm",
    "training.lr_schedule.final": "training.lr_schedule.min_lr_ratio",
    "training.recovery.skips": "training.recovery.max_consecutive_skips",
    "training.recovery.spike": "training.recovery.grad_spike_ratio",
    "training.recovery.rollbacks": "training.recovery.max_rollbacks",
    "model.multipliers": "model.channel_mult",
    "model.downsampling": "model.downsample_factor",
    "model.pca_start": "model.pca_init",
    "model.neck_channels": "model.bottleneck_channels",
    "model.prepare_blocks": "model.pre_encoder_blocks",
    "model.detail_blocks": "model.refine_blocks",
    "model.detail_size": "model.refine_resolution",
    "data.resident": "data.cache_on_device",
    "data.accept_change": "data.allow_changed_data",
    "data.augment.colour": "data.augment.color_jitter",
    "loss.kl.constraint.nats": "loss.kl.constraint.capacity",
    "loss.kl.constraint.start_nats": "loss.kl.constraint.initial_capacity",
    "loss.kl.convention": "loss.kl.reduction",
}
"""Dotted path of a setting, or of the part that it is in -> its later name; tried where a tree refuses the old one."""

METRICS = {
    "loss": ("train", ("loss.total",)),
    "nll": ("train", ("loss.nll",)),
    "validation loss": ("validation", ("loss.total",)),
    "psnr": ("validation", ("psnr",)),
    "kl": ("validation", ("rate.nats",)),
}
"""Name of a stored figure -> the rows of metrics.jsonl that have it, and its names in them."""

Settings = Mapping[str, Any]


class Commands(Protocol):
    """What a case may do. Every path is relative to the case's own folder, which holds `images.npy`."""

    def train(
        self, settings: Settings, *options: str, run: str = "run", ranks: int = 1, killed_after: int | None = None
    ) -> None: ...
    def verb(self, *words: str) -> None: ...
    def python(self, code: str, **constants: str) -> None: ...
    def same(self, one: str, other: str) -> None: ...


@dataclass(frozen=True)
class Case:
    """One golden run.

    Attributes:
        work: what is done.
        images: number, size in pixels and channels of `images.npy`.
        fixture: folder below fixtures/ whose files lie in the case's folder instead.
        quick: whether its figures are compared in the usual run of the tests.
        tolerance: relative, for stored figures.
    """

    name: str
    work: Callable[[Commands], None]
    images: tuple[int, int, int] = (48, 16, 3)
    fixture: str | None = None
    quick: bool = False
    tolerance: float = 1e-4


TRAINING: Settings = {
    "training.epochs": 4,
    "training.batch_size": 8,
    "training.ema_decay": 0.95,
    "training.log_every_steps": 3,
    "data.validation_fraction": 0.3,
    "training.samples": {"every_epochs": 2, "count": 4},
    "density.fit": "gaussian",
}
CONV: Settings = {**TRAINING, "model.image_size": 16, "model.latents": 4, "model.base_channels": 4}
RESIDUAL: Settings = {
    **TRAINING,
    "model.image_size": 16,
    "model.latents": 6,
    "model.base_channels": 8,
    "model.blocks": 1,
    "model.prepare_blocks": 1,
    "model.detail_blocks": 1,
    "model.neck_channels": 4,
}
SPATIAL: Settings = {
    **TRAINING,
    "model.image_size": 16,
    "model.downsampling": 4,
    "model.latent_channels": 2,
    "model.base_channels": 8,
    "model.multipliers": [1, 1, 2],
    "model.layers_per_block": 1,
}

USE_FROM_PYTHON = """
from pathlib import Path
import numpy
from unified_vae import VAE
vae = VAE.from_pretrained(MODEL, device="cpu")
posterior = vae.encode(numpy.load("images.npy")[:8])
a, b = posterior.mean[0], posterior.mean[1]
results = {
    "mean": posterior.mean, "logvar": posterior.logvar, "decoded": vae.decode(posterior.mean),
    "reconstructions": vae.reconstruct(numpy.load("images.npy")[8:12]), "samples": vae.sample(4, generator=1),
    "normal": vae.sample(4, density="normal", temperature=0.7, generator=2),
    "walk": vae.interpolate(a[None], b[None], 3, spherical=True),
}
Path("api").mkdir()
for name, values in results.items():
    numpy.save(f"api/{name}.npy", values.numpy())
"""


CONV_PRESET = ("--model-preset", "conv_64")


def _conv(do: Commands) -> None:
    """From random weights, with the plain mean squared error."""
    do.train({**CONV, "model.pca_start": False}, *CONV_PRESET, "--loss-preset", "mse_only")


def _residual(do: Commands) -> None:
    """From the PCA start, with mirrored images and beta warmed up."""
    warm_up = {"kind": "linear", "warmup": 0.5}
    do.train({**RESIDUAL, "loss.kl.schedule": warm_up}, "--augment-preset", "flip")


def _spatial(do: Commands) -> None:
    do.train(SPATIAL, "--model-preset", "spatial_f4", "--beta", "0.1")
    do.verb("encode", "run", "images.npy", "--output", "latents/map.npy", "--scale", "--device", "cpu")


def _geco(do: Commands) -> None:
    do.train({**CONV, "loss.kl.constraint": {"kind": "geco", "psnr": 24, "speed": 0.1}}, *CONV_PRESET)


def _bf16(do: Commands) -> None:
    do.train(RESIDUAL, "--precision", "bf16")


def _augmented(do: Commands) -> None:
    do.train({**RESIDUAL, "data.augment.colour.contrast": 0.2}, "--augment-preset", "strong")


def _micro_batches(do: Commands) -> None:
    """Three a step, clipped, with Adam."""
    adam = {"kind": "adam", "lr": 2e-3}
    do.train({**RESIDUAL, "training.optimizer": adam, "training.accumulate": 3, "training.clip_norm": 0.1, "seed": 7})


def _sgd(do: Commands) -> None:
    """Gray images; SGD, a plateau schedule, a growing capacity, L1."""
    settings = {
        "loss.l1.weight": 0.3,
        "loss.kl.constraint": {"kind": "capacity", "nats": 9.0, "start_nats": 1.0, "warmup": 0.5},
        "training.optimizer": {"kind": "sgd", "lr": 1e-3, "weight_decay": 1e-3},
        "training.lr_schedule": {"kind": "plateau", "warmup": 0.1, "factor": 0.5, "patience": 1, "final": 0.1},
    }
    do.train({**CONV, **settings}, *CONV_PRESET, "--beta", "5")


def _losses(do: Commands) -> None:
    """Every term that needs no pretrained weights, and free bits."""
    settings = {
        "loss.charbonnier.weight": 0.1,
        "loss.haarpsi.weight": 0.02,
        "loss.kl.constraint": {"kind": "free_bits", "nats_per_unit": 0.5},
    }
    do.train({**CONV, **settings}, *CONV_PRESET, "--loss-preset", "sharp_frequency")


def _vgg(do: Commands) -> None:
    """VGG features and LPIPS over the same random convolutions."""
    settings = {
        "training.epochs": 1,
        "loss.perceptual.weights_path": "{vgg}",
        "loss.lpips": {"weight": 0.02, "net": "vgg", "weights_path": "{vgg}"},
    }
    do.train({**CONV, **settings}, *CONV_PRESET, "--loss-preset", "perceptual")


def _lpips(do: Commands) -> None:
    """LPIPS over AlexNet."""
    alex = {"weight": 0.05, "net": "alex", "weights_path": "{alex}"}
    do.train({**CONV, "model.image_size": 32, "training.epochs": 2, "loss.lpips": alex}, *CONV_PRESET)


def _resumed(do: Commands) -> None:
    """Killed before the next checkpoint after that of step 14 has its name; step 14 is in mid-epoch."""
    settings = {
        **RESIDUAL,
        "training.checkpoint": {"every_steps": 7, "keep_last": 9},
        "data.augment.horizontal_flip": True,
    }
    do.train(settings, run="whole")
    do.train(settings, killed_after=14)
    do.train(settings)
    do.same("whole", "run")


def _ranks(do: Commands) -> None:
    do.train(RESIDUAL, ranks=2)


def _density(do: Commands) -> None:
    """A fitted mixture, and everything that is done with a finished run."""
    do.train({**RESIDUAL, "training.epochs": 2, "density.fit": "mixture", "density.max_components": 3})
    do.python(USE_FROM_PYTHON, MODEL="run")
    cpu = ("--device", "cpu")
    do.verb("encode", "run", "images.npy", "--output", "latents/means.npy", *cpu)
    do.verb("encode", "run", "images.npy", "--output", "latents/draws.npy", "--sample", "--seed", "3", "--scale", *cpu)
    do.verb("decode", "run", "latents/draws.npy", "--output", "decoded", *cpu)
    do.verb("sample", "run", "--count", "6", "--temperature", "0.8", "--seed", "1", "--sheet", "sheets/samples.png")
    do.verb("interpolate", "run", "1", "2", "--frames", "5", "--spherical", "--sheet", "sheets/walk.png", *cpu)
    do.verb("export", "run", "--to", "safetensors", "--checkpoint", "last", "--weights", "raw", "--output", "raw")


def _faces(do: Commands) -> None:
    """The first mode of the guide, on a few drawn faces."""
    settings = {**RESIDUAL, "training.epochs": 1, "data.max_images": 64}
    do.train(settings, "--mode", "quick_test", "--data", "builtin")


def _stored(do: Commands) -> None:
    """What version 0.1.0 left: a run stopped in mid-epoch, a model folder, a file of presets, the record of a run."""
    do.train({}, "--config", "settings.json")
    do.python(USE_FROM_PYTHON, MODEL="model")
    cpu = ("--device", "cpu")
    do.verb("encode", "model", "images.npy", "--output", "latents/means.npy", *cpu)
    do.verb("sample", "model", "--count", "6", "--seed", "1", "--sheet", "sheets/samples.png", *cpu)
    do.verb("export", "model", "--to", "safetensors", "--output", "exported")
    for mode in ("stored_residual", "stored_spatial"):
        do.train({}, "--config", "presets.json", "--mode", mode, run=mode)
    do.train({"training.epochs": 1}, "--config", "record.json", run="again")


def _stored_first_format(do: Commands) -> None:
    """A run that an early state of version 0.1.0 left after its first epoch."""
    by_steps_alone = {"training.checkpoint.every_minutes": 100.0}  # the clock would decide which checkpoints there are
    do.train(by_steps_alone, "--config", "settings.json")


CASES = {
    case.name: case
    for case in (
        Case("conv", _conv, quick=True),
        Case("residual", _residual, quick=True),
        Case("spatial", _spatial),
        Case("geco", _geco),
        Case("bf16", _bf16, tolerance=1e-2),
        Case("augmented", _augmented),
        Case("micro-batches", _micro_batches),
        Case("sgd", _sgd, images=(48, 16, 1)),
        Case("losses", _losses),
        Case("vgg", _vgg),
        Case("lpips", _lpips, images=(48, 32, 3)),
        Case("resumed", _resumed),
        Case("ranks", _ranks),
        Case("density", _density),
        Case("faces", _faces),
        Case("stored", _stored, fixture="0.1.0", quick=True),
        Case("stored-first-format", _stored_first_format, fixture="0.1.0-first-format", quick=True),
    )
}
