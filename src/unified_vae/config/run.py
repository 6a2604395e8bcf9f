"""A run, completely: validated and frozen. Importing this does not import torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from unified_vae.config.base import Config
from unified_vae.config.data import DataConfig
from unified_vae.config.loss import LossConfig
from unified_vae.config.model import ConvConfig, DensityConfig, ModelConfig
from unified_vae.config.training import TrainingConfig


class RunConfig(Config):
    """Everything that decides what a run computes. `--set path=value` reaches every field below."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """Decides the first weights, the order of images, augmentation and noise."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    """auto, cpu, cuda, cuda:N or mps."""
    preflight: Literal["warn", "strict"] = "warn"
    """Where linear theory predicts posterior collapse before the first step: `warn`, or be `strict` and stop."""
    license: str = Field(default="unknown", pattern=r"^[A-Za-z0-9][A-Za-z0-9.+-]*$")
    """License of the model, for its card: an identifier of the Hugging Face Hub, such as cc-by-4.0 or apache-2.0."""
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()
    model: ModelConfig = ConvConfig()
    data: DataConfig = DataConfig()
    density: DensityConfig = DensityConfig()


@dataclass(frozen=True)
class ComposedRun:
    """A validated config and where each value came from.

    Attributes:
        config: the run.
        origins: dotted path of every leaf -> its origin in words, e.g. `default`,
            `--beta`, `--set`,
            `loss preset mse_l1 (config/config_unified.json)`.
        names: what was composed: mode, loss, training, model, dataset and augment preset, where given.
        notes: lines the user should read.
    """

    config: RunConfig
    origins: Mapping[str, str]
    names: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
