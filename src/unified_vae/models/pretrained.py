"""A model as a folder: `model.safetensors` and `config.json`, written at the end of a run and read by everyone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unified_vae.core.durable import STAGE_PREFIX, sync_file, write_text
from unified_vae.core.errors import CheckpointError
from unified_vae.models.build import build_model
from unified_vae.models.config import ModelConfig
from unified_vae.models.vae import VAE

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
FORMAT = 1


def save_pretrained(folder: Path, config: ModelConfig, weights: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write a model's folder.

    Args:
        folder: made if absent. The config file is written last: while it is absent, the folder is no model.
        config: the model's, with channels resolved.
        weights: a state dict of `build_model(config)`.
        about: further facts kept in the config file: the run, its figures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    (folder / CONFIG).unlink(missing_ok=True)  # without it the folder is no model, whatever weights lie there
    staged = folder / f"{STAGE_PREFIX}{WEIGHTS}"
    save_file(tensors, staged, metadata={"format": "pt"})
    sync_file(staged)
    staged.replace(folder / WEIGHTS)
    write_text(folder / CONFIG, json.dumps({"format": FORMAT, "model": config.model_dump(), **about}, indent=2) + "\n")


def load_pretrained(folder: str | Path, device: str | torch.device = "cpu") -> VAE:
    """Read a model's folder back, ready to evaluate.

    Raises:
        CheckpointError: the folder is no model, or its files are damaged or do not fit each other.
    """
    folder = Path(folder)
    if not (folder / WEIGHTS).exists() and (folder / "model" / WEIGHTS).is_file():
        raise CheckpointError(f"{folder} is the folder of a run; the model is in {folder / 'model'}.")
    try:
        description = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        config = TypeAdapter(ModelConfig).validate_python(description["model"])
        weights = load_file(folder / WEIGHTS)
    except FileNotFoundError as problem:
        raise CheckpointError(
            f"{folder} is not a model folder: {Path(problem.filename or WEIGHTS).name} is missing there. "
            "Give the folder `model` of a finished run."
        ) from problem
    except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError, ValidationError, SafetensorError) as problem:
        raise CheckpointError(
            f"the model in {folder} is damaged: {problem}. Export it again from its run."
        ) from problem
    model = build_model(config)
    try:
        model.load_state_dict(weights)
    except RuntimeError as problem:
        raise CheckpointError(
            f"the weights in {folder / WEIGHTS} do not fit the model that {CONFIG} describes. "
            "Take both files from the same export."
        ) from problem
    return model.to(device).eval()
