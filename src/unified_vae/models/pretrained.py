"""A model as a folder: weights, latent density, latent statistics and `config.json`.

Formats: 1 held no density; 2 may hold one; 3 has today's names of tensors. Without a density, new images are sampled
from N(0, I).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from unified_vae.config.model import ModelConfig
from unified_vae.config.upgrade import upgrade_part
from unified_vae.core.checkpoint_format import TENSOR_FILE_ERRORS, write_tensors
from unified_vae.core.distributions import DiagonalGaussian
from unified_vae.core.errors import CheckpointError, reason
from unified_vae.core.files import write_text
from unified_vae.models.build import build_model
from unified_vae.models.density import FILE_NAME as DENSITY_FILE
from unified_vae.models.density import LatentDensity, check_finite, read_density, unit_moments, write_density
from unified_vae.models.vae import VAE

WEIGHTS = "model.safetensors"
STATS = "latent_stats.safetensors"
CONFIG = "config.json"
FORMAT = 3
DENSITY = "density"  # the entry of the config file
LATENT_STATS = "latent_stats"  # likewise


@dataclass(frozen=True)
class LatentStats:
    """Mean and spread of a model's latents over its training images: what a model trained on latents divides by.

    The latents are draws z ~ q(z|x), so that a variance is that of the posteriors' means plus the mean of their
    variances. The one number for all units is the scaling factor of Rombach et al. 2022 (arXiv 2112.10752, appendix G).

    Attributes:
        mean: [latents], of each unit.
        std: [latents], of each unit.
        images: how many they were measured on.
    """

    mean: Tensor
    std: Tensor
    images: int

    @property
    def shift(self) -> float:
        """Mean over units and images."""
        return float(self.mean.double().mean())

    @property
    def scale(self) -> float:
        """1 / standard deviation over units and images: (z - shift) * scale has mean 0 and variance 1."""
        variance = self.std.double().square() + (self.mean.double() - self.shift).square()
        return 1 / max(math.sqrt(float(variance.mean())), torch.finfo(torch.float32).tiny)

    def normalize(self, latents: Tensor) -> Tensor:
        """Return latents [n, latents] with mean 0 and variance 1 in every unit."""
        return (latents - self.mean.to(latents)) / self.std.to(latents)

    def denormalize(self, latents: Tensor) -> Tensor:
        """The inverse of `normalize`."""
        return latents * self.std.to(latents) + self.mean.to(latents)


def measure_latent_stats(posteriors: DiagonalGaussian) -> LatentStats:
    """Measure the statistics of posteriors [n, latents], in float64.

    Raises:
        ArithmeticError: they have NaN/Inf.
    """
    check_finite(posteriors)
    mean, variance = unit_moments(posteriors)
    return LatentStats(mean.float(), variance.sqrt().float(), len(posteriors.mean))


@dataclass(frozen=True)
class Pretrained:
    """The content of a model's folder.

    Attributes:
        model: with its latent density, ready to evaluate.
        description: the content of its config file.
        stats: None in folders of earlier versions.
    """

    model: VAE
    config: ModelConfig
    description: Mapping[str, Any]
    stats: LatentStats | None


def save_pretrained(folder: Path, config: ModelConfig, weights: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write a model's folder.

    Args:
        folder: made if absent. The config file is written last: while it is absent, the folder is no model.
        config: the model's, with channels resolved.
        weights: a state dict of `build_model(config)`.
        about: further facts kept in the config file: the run, its figures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)  # without it the folder is no model, whatever weights lie there
    for name in (DENSITY_FILE, STATS):
        (folder / name).unlink(missing_ok=True)  # of the weights that were there
    write_tensors(folder / WEIGHTS, weights)
    write_text(folder / CONFIG, json.dumps({"format": FORMAT, "model": config.model_dump(), **about}, indent=2) + "\n")


def save_density(folder: Path, density: LatentDensity, about: Mapping[str, Any]) -> None:
    """Add to a complete model what new images are sampled from, in place of an earlier density.

    Args:
        about: further facts kept in the config file: the requested kind, the metrics of the fit.
    """
    describe(folder, {DENSITY: {**write_density(folder, density), **about}})


def save_stats(folder: Path, stats: LatentStats) -> None:
    """Add to a complete model the statistics of its latents."""
    write_tensors(folder / STATS, {"mean": stats.mean, "std": stats.std})
    describe(folder, {LATENT_STATS: {"images": stats.images, "shift": stats.shift, "scale": stats.scale}})


def describe(folder: Path, entries: Mapping[str, Any]) -> None:
    """Add entries to the config file of a complete model, in place of earlier ones of the same names."""
    description = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    write_text(folder / CONFIG, json.dumps({**description, **entries}, indent=2) + "\n")


def load_pretrained(folder: str | Path, device: str | torch.device = "cpu") -> VAE:
    """Read a model's folder back, ready to evaluate and, with its latent density, to sample.

    Raises:
        CheckpointError: the folder is no model or a newer version's, or its files are damaged or do not fit each other.
    """
    return open_pretrained(folder, device).model


def open_pretrained(folder: str | Path, device: str | torch.device = "cpu") -> Pretrained:
    """Read all of a model's folder; raises as `load_pretrained` does."""
    folder = Path(folder)
    if not (folder / WEIGHTS).exists() and (folder / "model" / WEIGHTS).is_file():
        raise CheckpointError(f"{folder} is the folder of a run; the model is in {folder / 'model'}.")
    try:
        description = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if description["format"] > FORMAT:
            raise CheckpointError(f"the model in {folder} was written by a newer version of unified-vae: update it.")
        settings = description["model"]
        config = TypeAdapter(ModelConfig).validate_python(upgrade_part("model", settings))
        weights = safetensors.torch.load((folder / WEIGHTS).read_bytes())
    except (FileNotFoundError, NotADirectoryError) as problem:
        raise CheckpointError(
            f"{folder} is not a model folder: {Path(problem.filename or WEIGHTS).name} is missing there. "
            "Give the folder `model` of a finished run."
        ) from problem
    except CheckpointError:
        raise
    except (*TENSOR_FILE_ERRORS, ValidationError, RecursionError) as problem:
        raise CheckpointError(
            f"the model in {folder} is damaged: {reason(problem)}. Export it again from its run."
        ) from problem
    try:
        # a model that these weights cannot be of is not built: it might take all of memory
        largest = max((size for tensor in weights.values() for size in tensor.shape), default=0)
        if config.max_dimension() > largest:
            raise ValueError(f"the weights have no dimension above {largest}")
        model = build_model(config)
        model.load_state_dict(model.upgrade_state_dict(weights))
    except (RuntimeError, MemoryError, ValueError) as problem:
        raise CheckpointError(
            f"the weights in {folder / WEIGHTS} do not fit the model that {CONFIG} describes. "
            "Take both files from the same export."
        ) from problem
    try:
        what, entry = "latent density", description.get(DENSITY)
        if entry is not None:
            if entry["latents"] != model.latents:
                raise ValueError(f"it is of {entry['latents']} latents")
            model.use_density(read_density(folder, entry))
        what, entry, stats = "latent statistics", description.get(LATENT_STATS), None
        if entry is not None:
            tensors = safetensors.torch.load((folder / STATS).read_bytes())
            stats = LatentStats(tensors["mean"], tensors["std"], int(entry["images"]))
            if stats.mean.shape != (model.latents,) or stats.std.shape != (model.latents,):
                raise ValueError(f"of {list(stats.mean.shape)} latents")
    except TENSOR_FILE_ERRORS as problem:
        raise CheckpointError(
            f"the model in {folder} is damaged in its {what} ({reason(problem)}). Export it again from its run."
        ) from problem
    return Pretrained(model.to(device).eval(), config, description, stats)
