"""A spatial model as a folder that `diffusers.AutoencoderKL.from_pretrained` opens.

The weights are the model's own under diffusers' names; pixels are in [-1, 1] there. The latents' scale and shift are
measured on training images: a diffusion model is trained on (z - shift_factor) * scaling_factor, as with Stable
Diffusion 3 and Flux, which has mean 0 and variance 1 over all channels and positions.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from unified_vae.config.model import SpatialConfig
from unified_vae.core.durable import write_text
from unified_vae.core.errors import ConfigError
from unified_vae.core.events import Observer
from unified_vae.core.tensor_file import write_tensors
from unified_vae.experiment.export.comparison import Checked, compare
from unified_vae.experiment.export.diffusers_card import card
from unified_vae.experiment.export.parts import parts
from unified_vae.experiment.export.request import ExportRequest
from unified_vae.experiment.subject.images import open_images, refuse_other_channels
from unified_vae.experiment.subject.same_weights import finished_model_or_notice
from unified_vae.experiment.subject.subject import Subject
from unified_vae.models.half_precision import HalfAudit
from unified_vae.models.latent_stats import LatentStats, measure
from unified_vae.models.spatial import foreign_name
from unified_vae.models.spatial_blocks import norm_groups
from unified_vae.training.distributed import open_runtime
from unified_vae.training.latents import posteriors

WEIGHTS, CONFIG, CARD = "diffusion_pytorch_model.safetensors", "config.json", "README.md"
PIXELS = "float in [-1, 1], channels first"
MOST_IMAGES = 1000  # that scale and shift are measured on
BATCHES = (1, 2)  # the files say nothing of it
ALLOWED = 1e-6  # relative; equal numbers are expected


def shape_of(subject: Subject) -> SpatialConfig:
    """The model's settings.

    Raises:
        ConfigError: its latents are no map.
    """
    config = subject.config.model
    if isinstance(config, SpatialConfig):
        return config
    raise ConfigError(
        f"--to diffusers: the latents of {subject.name} are a vector, and AutoencoderKL takes a map. Train a model of "
        "the family spatial (--model-preset spatial_f8), or export this one with --to onnx, torch or safetensors."
    )


def write(
    stage: Path, subject: Subject, found: HalfAudit | None, request: ExportRequest, observer: Observer
) -> list[Checked]:
    """Write weights, config and card, and see that a process with diffusers alone gets equal numbers from them.

    Args:
        found: the audit of half precision; where fp16 is safe, diffusers is told that it need not compute in fp32.

    Raises:
        ConfigError: there are no images to measure the latents on.
        EnvironmentProblem: diffusers computes other numbers.
    """
    config = shape_of(subject)
    stats = _statistics(subject, request, observer)
    observer.phase("writing the folder", 0, None)
    state = subject.model.state_dict()
    write_tensors(stage / WEIGHTS, {foreign_name(name): value for name, value in state.items()})
    settings = description(config, stats, upcast=found is None or not found.fp16.safe)
    write_text(stage / CONFIG, json.dumps(settings, indent=2) + "\n")
    write_text(stage / CARD, card(subject, config, stats, found))
    observer.phase("opening it with diffusers alone, in a fresh process", 0, None)
    reader = f"diffusers {version('diffusers')}"
    both = compare(stage, list(parts(subject.model)), "diffusers", f" of {WEIGHTS}", ALLOWED, reader, BATCHES)
    return [Checked(WEIGHTS, max(one.absolute for one in both), max(one.relative for one in both), reader)]


def description(config: SpatialConfig, stats: LatentStats, upcast: bool) -> dict[str, Any]:
    """The config file, as AutoencoderKL writes its own."""
    stages = len(config.widths)
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": version("diffusers"),
        "act_fn": "silu",
        "block_out_channels": list(config.widths),
        "down_block_types": ["DownEncoderBlock2D"] * stages,
        "force_upcast": upcast,
        "in_channels": config.channels,
        "latent_channels": config.latent_channels,
        "latents_mean": None,
        "latents_std": None,
        "layers_per_block": config.layers_per_block,
        "mid_block_add_attention": config.attention,
        "norm_num_groups": norm_groups(config.base_channels),
        "out_channels": config.channels,
        "sample_size": config.image_size,
        "scaling_factor": stats.scale,
        "shift_factor": stats.shift,
        "up_block_types": ["UpDecoderBlock2D"] * stages,
        "use_post_quant_conv": config.quant_convs,
        "use_quant_conv": config.quant_convs,
    }


def _statistics(subject: Subject, request: ExportRequest, observer: Observer) -> LatentStats:
    """Those of the run's own model folder where it holds these weights, else measured."""
    if request.data is None:
        finished = finished_model_or_notice(subject, observer.notice, "So the scale of the latents is measured anew.")
        if finished is not None and finished.content.stats is not None:
            return finished.content.stats
    if request.data is None and subject.record is None:
        raise ConfigError(
            f"{subject.name} says nothing of its latents' scale: name images to measure it on with --data"
        )
    data = open_images(subject, request.data, observer, max_images=subject.config.data.max_images)
    refuse_other_channels(data, subject)

    def encoded(done: int, total: int) -> None:
        observer.phase("measuring the scale of the latents", done, total)

    with open_runtime(request.device or subject.config.device, "fp32") as runtime:
        try:
            model = subject.model.to(runtime.device)
            return measure(posteriors(model, data.train, MOST_IMAGES, subject.config.seed, encoded))
        finally:
            subject.model.to(torch.device("cpu"))
