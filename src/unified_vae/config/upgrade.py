"""Settings of earlier versions: what renamed ones are called now, and what old records leave out.

Every record of a run, model folder and file of settings is read through this, so that those of before still load.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unified_vae.config.base import Keys
from unified_vae.core.errors import ConfigError

RENAMED: dict[str, str] = {
    "data.accept_change": "allow_changed_data",
    "data.augment.colour": "color_jitter",
    "data.resident": "cache_on_device",
    "loss.kl.constraint.nats": "capacity",
    "loss.kl.constraint.start_nats": "initial_capacity",
    "loss.kl.convention": "reduction",
    "model.downsampling": "downsample_factor",
    "model.multipliers": "channel_mult",
    "model.pca_start": "pca_init",
    "model.prepare_blocks": "pre_encoder_blocks",
    "model.detail_blocks": "refine_blocks",
    "model.detail_size": "refine_resolution",
    "model.neck_channels": "bottleneck_channels",
    "training.accumulate": "gradient_accumulation_steps",
    "training.clip_norm": "max_grad_norm",
    "training.lr_schedule.final": "min_lr_ratio",
    "training.recovery.skips": "max_consecutive_skips",
    "training.recovery.rollbacks": "max_rollbacks",
    "training.recovery.spike": "grad_spike_ratio",
}
"""Dotted path before -> the last word of today's path."""

RENAMED_VALUES: dict[str, dict[str, str]] = {
    "data.background": {"grey": "gray"},
    "model.refine_resolution": {"picture": "pca"},
}
"""Dotted path of today -> value before -> value of today."""

REMOVED: dict[str, tuple[Any, str]] = {
    "data.workers": (0, "loader processes are gone, since a thread that reads ahead is faster"),
    "density.flow_steps": (1500, "the coupling flow of the latents is gone"),
}
"""Dotted path before -> the value that meant the same as today, and why the setting is gone."""

REMOVED_VALUES: dict[str, dict[str, tuple[str, str]]] = {
    "density.fit": {"flow": ("auto", "the coupling flow of the latents is gone")}
}
"""Dotted path of today -> value before -> the value that replaces it in files, and why it is gone."""

MISSING: dict[str, dict[str, Any]] = {
    "residual": {"pre_encoder_blocks": 0, "bottleneck_channels": 2**20, "refine_resolution": "full"}
}
"""By family, settings that records of earlier versions lack, as their models had them: all channels, for one."""

MAX_PCA_SIDE = 64
"""Pixels along a side of the PCA reconstruction at most; core.linear_vae.LARGEST_SIDE, which needs torch."""


def new_path(path: str) -> str | None:
    """Return today's path of a renamed setting, or of one below it; None for a path that was not renamed."""
    parts = path.split(".")
    words = [RENAMED.get(".".join(parts[: n + 1]), part) for n, part in enumerate(parts)]
    return None if words == parts else ".".join(words)


def rename(
    values: Mapping[str, Any], old_names: dict[Keys, str] | None = None, notes: list[str] | None = None, at: str = ""
) -> dict[str, Any]:
    """Return settings, complete or not, under today's names and without those that are gone.

    Args:
        old_names: takes up the old path of each renamed setting, by its path of today.
        notes: takes up a line for each setting or value that is gone and had an effect.
        at: the dotted path of `values` in earlier versions, with a dot at its end.

    Raises:
        ConfigError: a setting is given under its old and its new name.
    """
    result: dict[str, Any] = {}
    for key, value in values.items():
        before = at + key
        if before in REMOVED:
            same_as_today, reason = REMOVED[before]
            if notes is not None and value != same_as_today:
                notes.append(f"{before} is ignored: {reason}")
            continue
        word = RENAMED.get(before, key)
        if word != key:
            if word in values:
                raise ConfigError(f"{before} is now called {word}, and both are given: remove {key}")
            if old_names is not None:
                old_names[tuple((new_path(before) or before).split("."))] = before
        if isinstance(value, Mapping):
            value = rename(value, old_names, notes, f"{before}.")
        elif isinstance(value, str):
            value = RENAMED_VALUES.get(at + word, {}).get(value, value)
            if replaced := REMOVED_VALUES.get(at + word, {}).get(value):
                if notes is not None:
                    notes.append(f"{before}={value} is read as {replaced[0]}: {replaced[1]}")
                value = replaced[0]
        result[word] = value
    return result


def missing_fields(model: object) -> dict[str, Any]:
    """Return what a record of an earlier version leaves out of its model's settings; empty for one of today."""
    if not isinstance(model, Mapping):
        return {}
    known = MISSING.get(str(model.get("family")), {})
    if known and (model.get("image_size", 0) in range(1, MAX_PCA_SIDE + 1) or model.get("pca_init") is False):
        known = {**known, "refine_resolution": "pca"}  # the same network, under the name of today
    return {name: value for name, value in known.items() if name not in model}


def upgrade_part(part: str, value: Any) -> Any:
    """Return one part of complete settings, such as `model` or `loss`, as this version has it."""
    value = rename({part: value})[part]
    return {**missing_fields(value), **value} if part == "model" and isinstance(value, dict) else value


def upgrade(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the complete settings of a run as this version has them.

    Raises:
        ValueError: they are no settings of a run.
    """
    if not isinstance(settings, Mapping) or "model" not in settings:
        raise ValueError("the settings of a run should be an object with a model")
    return {part: upgrade_part(part, value) for part, value in settings.items()}
