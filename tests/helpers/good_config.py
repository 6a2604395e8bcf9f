"""A small preset book without a mistake, for tests that put some in."""

from __future__ import annotations

GOOD: dict[str, object] = {
    "modes": {"m": {"loss": "l", "training": "t", "model": "s", "dataset": "d"}},
    "loss_presets": {"l": {"mse": {"weight": 1.0}, "kl": {"weight": 2.0}}},
    "training_presets": {"t": {"epochs": 1, "optimizer": {"kind": "adamw", "lr": 1e-3}}},
    "model_presets": {"s": {"latents": 8}},
    "dataset_presets": {"d": {"max_images": 10}},
}
