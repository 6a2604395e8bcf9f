"""Settings of optimizers and learning-rate schedules: typed unions that later members extend."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from unified_vae.config.base import Config

Beta = Annotated[float, Field(ge=0, lt=1)]


class AdamWConfig(Config):
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101)."""

    kind: Literal["adamw"] = "adamw"
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""
    beta1: Beta = 0.9
    """Decay of the running mean of gradients."""
    beta2: Beta = 0.99
    """Decay of the running mean of squared gradients."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the denominator."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay; biases and norm gains are exempt."""


class AdamConfig(Config):
    """Adam (Kingma & Ba 2015, arXiv 1412.6980)."""

    kind: Literal["adam"] = "adam"
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""
    beta1: Beta = 0.9
    """Decay of the running mean of gradients."""
    beta2: Beta = 0.999
    """Decay of the running mean of squared gradients."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the denominator."""


class SGDConfig(Config):
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"] = "sgd"
    lr: float = Field(default=1e-2, gt=0)
    """Peak learning rate."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum."""
    nesterov: bool = True
    """Nesterov's form of momentum."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay; biases and norm gains are exempt."""


OptimizerConfig = Annotated[AdamWConfig | AdamConfig | SGDConfig, Field(discriminator="kind")]


class ParameterGroupConfig(Config):
    """Parameters with a learning rate, a decay or an optimizer of their own."""

    pattern: str = Field(min_length=1)
    """Shell pattern of the parameters' names, e.g. `encoder.*`. The first group that matches takes a parameter."""
    lr_factor: float = Field(default=1.0, gt=0)
    """The learning rate is multiplied by this."""
    weight_decay: float | None = Field(default=None, ge=0)
    """Weight decay; null takes the optimizer's. Biases and norm gains are exempt."""
    frozen: bool = False
    """Leave these parameters as they are."""
    optimizer: OptimizerConfig | None = None
    """An optimizer of its own; null takes `training.optimizer`."""


class ConstantLR(Config):
    """The peak rate after a linear warm-up."""

    kind: Literal["constant"] = "constant"
    warmup: float = Field(default=0.0, ge=0, lt=1)
    """Part of the run that the warm-up takes."""


class CosineLR(Config):
    """A linear warm-up, then half a cosine down to `min_lr_ratio` times the peak."""

    kind: Literal["cosine"] = "cosine"
    warmup: float = Field(default=0.02, ge=0, lt=1)
    """Part of the run that the warm-up takes."""
    min_lr_ratio: float = Field(default=0.05, ge=0, le=1)
    """Rate at the end, as a part of the peak."""


class PlateauLR(Config):
    """A linear warm-up, then the rate times `factor` whenever validation PSNR stands still."""

    kind: Literal["plateau"] = "plateau"
    warmup: float = Field(default=0.0, ge=0, lt=1)
    """Part of the run that the warm-up takes."""
    factor: float = Field(default=0.5, gt=0, lt=1)
    """Multiplies the rate at each reduction."""
    patience: int = Field(default=5, ge=1)
    """Validations without gain before a reduction."""
    min_lr_ratio: float = Field(default=0.01, ge=0, le=1)
    """Lowest rate, as a part of the peak."""


LRScheduleConfig = Annotated[ConstantLR | CosineLR | PlateauLR, Field(discriminator="kind")]
