"""A model as a folder: weights, latent density and `config.json`, written at the end of a run and read by everyone.

Formats: 1 held no density; 2 may hold one. Where there is none, new pictures are sampled from N(0, I). Statistics of
the latents may lie beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from unified_vae.config.model import ModelConfig
from unified_vae.config.upgrade import upgrade_part
from unified_vae.core.durable import reason, write_text
from unified_vae.core.errors import CheckpointError
from unified_vae.core.tensor_file import TENSOR_FILE_ERRORS, parse_tensors, write_tensors
from unified_vae.models.build import build_model
from unified_vae.models.density import FILE_NAME as DENSITY_FILE
from unified_vae.models.density import LatentDensity, NormalDensity, read_density, write_density
from unified_vae.models.latent_stats import STATS, LatentStats, read_stats, write_stats
from unified_vae.models.vae import VAE

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
FORMAT = 2
DENSITY = "density"  # the entry of the config file
LATENT_STATS = "latent_stats"  # likewise


@dataclass(frozen=True)
class Pretrained:
    """What a model's folder holds.

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
    """Add to a complete model what new pictures are sampled from, in place of an earlier density.

    Args:
        about: further facts kept in the config file: what was asked for, the figures of the fit.
    """
    describe(folder, {DENSITY: {**write_density(folder, density), **about}})


def save_stats(folder: Path, stats: LatentStats) -> None:
    """Add to a complete model the statistics of its latents."""
    describe(folder, {LATENT_STATS: write_stats(folder, stats)})


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
        weights = parse_tensors((folder / WEIGHTS).read_bytes())
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
        _refuse_larger(config, weights)
        model = build_model(config)
        model.load_state_dict(model.upgrade_state_dict(weights))
    except (RuntimeError, MemoryError, ValueError) as problem:
        raise CheckpointError(
            f"the weights in {folder / WEIGHTS} do not fit the model that {CONFIG} describes. "
            "Take both files from the same export."
        ) from problem
    model.use_density(_density(folder, description.get(DENSITY), model.latents))
    stats = _stats(folder, description.get(LATENT_STATS), model.latents)
    return Pretrained(model.to(device).eval(), config, description, stats)


def _refuse_larger(config: ModelConfig, weights: Mapping[str, Tensor]) -> None:
    """Raise ValueError where a model would be built, for all of memory perhaps, that these weights cannot be of."""
    largest = max((size for tensor in weights.values() for size in tensor.shape), default=0)
    if config.widest() > largest:
        raise ValueError(f"the weights have no dimension above {largest}")


def _density(folder: Path, entry: Any, latents: int) -> LatentDensity:
    if entry is None:
        return NormalDensity(latents)
    try:
        if entry["latents"] != latents:
            raise ValueError(f"it is of {entry['latents']} latents")
        density = read_density(folder, entry)
    except TENSOR_FILE_ERRORS as problem:
        raise CheckpointError(
            f"the latent density of the model in {folder} is damaged ({reason(problem)}). Export it again from its run."
        ) from problem
    return density


def _stats(folder: Path, entry: Any, latents: int) -> LatentStats | None:
    try:
        return None if entry is None else read_stats(folder, entry, latents)
    except TENSOR_FILE_ERRORS as problem:
        raise CheckpointError(
            f"the latent statistics of the model in {folder} are damaged ({reason(problem)}). Export it again from its "
            "run."
        ) from problem
