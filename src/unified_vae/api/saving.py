"""A model's folder, whole, from a model in memory: weights, statistics, density, card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from unified_vae.api.card import card, write_card
from unified_vae.core.durable import reason
from unified_vae.core.errors import EnvironmentProblem
from unified_vae.models.config import ModelConfig
from unified_vae.models.latent_stats import LatentStats
from unified_vae.models.pretrained import DENSITY, LATENT_STATS, save_density, save_pretrained, save_stats
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
        ConfigError: the licence in the description is no identifier; nothing was written.
    """
    card(model, description, stats)
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
