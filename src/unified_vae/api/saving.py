"""A model's folder, whole, from a model in memory: weights, statistics, density, card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from unified_vae.api.card import CARD, card, write_card
from unified_vae.config.model import ModelConfig
from unified_vae.core.durable import reason
from unified_vae.core.errors import ConfigError, EnvironmentProblem
from unified_vae.models.pretrained import (
    CONFIG,
    DENSITY,
    LATENT_STATS,
    LatentStats,
    save_density,
    save_pretrained,
    save_stats,
)
from unified_vae.models.vae import VAE

WRITTEN_ANEW = ("format", "model", DENSITY, LATENT_STATS)
SHAPE = ("kind", "latents", "sizes")  # of the density's entry, written anew likewise


def save(
    folder: Path,
    model: VAE,
    config: ModelConfig,
    description: Mapping[str, Any],
    stats: LatentStats | None,
    background: str,
) -> Path:
    """Write everything that `from_pretrained` reads, and the card; returns `folder`.

    Raises:
        EnvironmentProblem: the folder cannot be written.
        ConfigError: the licence in the description is no identifier, or `folder` is something else's; nothing was
            written.
    """
    card(model, description, stats)
    refuse_other(folder)
    about = {name: value for name, value in description.items() if name not in WRITTEN_ANEW}
    of_density = {name: value for name, value in description.get(DENSITY, {}).items() if name not in SHAPE}
    try:
        save_pretrained(folder, config, model.state_dict(), {**about, "background": background})
        if stats is not None:
            save_stats(folder, stats)
        save_density(folder, model.density, of_density)
        write_card(folder, model, {**description, "model": config.model_dump()}, stats)
    except (OSError, SafetensorError) as problem:
        raise EnvironmentProblem(
            f"the model cannot be written to {folder} ({reason(problem)}). Free space, or name another folder."
        ) from problem
    return folder


def refuse_other(folder: Path) -> None:
    """Raise ConfigError where the folder is not a model's and a file in it would be written over."""
    if (folder / "checkpoints").exists():
        what = "is the folder of a run"
    elif _is_model(folder / CONFIG):
        return
    elif present := [name for name in (CONFIG, CARD) if (folder / name).exists()]:
        what = f"holds a {present[0]} that is no model's"
    else:
        return
    raise ConfigError(f"{folder} {what}, and nothing in it was changed: save the model to a folder of its own")


def _is_model(file: Path) -> bool:
    """Whether this is the config file of a model, of any version."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"format", "model"} <= content.keys()
