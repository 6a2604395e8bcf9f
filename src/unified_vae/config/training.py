"""Settings of the training: how long, how fast, what is kept."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from unified_vae.config.base import Config
from unified_vae.config.optim import AdamWConfig, CosineLR, LRScheduleConfig, OptimizerConfig, ParameterGroupConfig

EMA_PART = 0.05  # of a run's steps that the averaged weights reach back over
EMA_DECAY = 0.9995  # the longest, 2,000 steps
VALIDATIONS = 100  # of a run of many epochs
GRIDS = 20  # of a run of many epochs

Precision = Literal["auto", "fp32", "bf16", "fp16"]
MemoryFormat = Literal["auto", "contiguous", "channels_last"]


def _whole_or_auto(value: object) -> object:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError(f'expected a whole number of at least 1, or "auto", got {json.dumps(value, default=str)[:60]}')


WholeOrAuto = Annotated[Annotated[int, Field(ge=1)] | Literal["auto"], BeforeValidator(_whole_or_auto)]


class EarlyStoppingConfig(Config):
    """Stop when validation PSNR of the EMA weights no longer rises. Starts when all warm-ups have ended."""

    patience: int | None = Field(default=10, ge=1)
    """Validations without gain before the run stops; null never stops early."""
    min_delta: float = Field(default=0.01, ge=0)
    """Gain in dB that counts."""


class CheckpointConfig(Config):
    """What is saved. The newest, the best and every n-th are kept; the rest of the ring is pruned."""

    keep_last: int = Field(default=2, ge=2)
    """Newest checkpoints kept, so that one good one is left if the newest is damaged."""
    keep_every_epochs: int | None = Field(default=None, ge=1)
    """Keep the checkpoint of every n-th epoch for good; null keeps none but the newest and the best."""
    every_minutes: float = Field(default=10.0, gt=0)
    """Save at least this often, also in the middle of an epoch."""
    every_steps: int = Field(default=1000, ge=1)
    """Save every n-th step as well. On NaN/Inf a run is rolled back to one of these or to a validation, never to a save
    by the clock, so that it does the same whenever it is interrupted."""


class RecoveryConfig(Config):
    """A step whose loss or gradient is NaN/Inf is skipped; after too many in a row the run is rolled back."""

    max_consecutive_skips: int = Field(default=5, ge=1)
    """Skipped steps in a row after which the run is rolled back to its last good checkpoint."""
    lr_factor: float = Field(default=0.5, gt=0, lt=1)
    """The learning rate is multiplied by this each time."""
    max_rollbacks: int = Field(default=3, ge=0)
    """Rollbacks after which a run stops with a diagnosis (exit code 4)."""
    grad_spike_ratio: float = Field(default=10.0, gt=1)
    """A gradient's norm of this many times its running median is counted and reported."""


class SamplesConfig(Config):
    """Grids of sample images: reconstructions beside originals, samples from fixed noise, an interpolation."""

    every_epochs: WholeOrAuto = "auto"
    """Epochs between grids; `auto` draws about 20 in a run. The first and the last epoch always draw them."""
    count: int = Field(default=16, ge=1, le=256)
    """Images on a grid."""


class TrainingConfig(Config):
    """One unit of progress, the optimizer step; epochs are only a way to say how many."""

    epochs: int = Field(default=50, ge=1)
    """Passes over the training images."""
    batch_size: WholeOrAuto = 64
    """Images per optimizer step, over all devices and micro-batches; `auto` finds the largest that fits on a GPU and
    takes at most 64 on a CPU."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Micro-batches that each device's share of a batch is split into: less memory, same result."""
    max_steps: int | None = Field(default=None, ge=1)
    """End after this many optimizer steps, whatever the epochs say; null for no such bound."""
    precision: Precision = "auto"
    """Arithmetic of the network; `auto` is bf16 on a CUDA device that has it, else fp32. The losses are fp32, but for
    the convolutions of pretrained networks in a bf16 run."""
    memory_format: MemoryFormat = "auto"
    """Order of images and weights in memory, which decides between kernels; `auto` measures both where a GPU has a
    long run to do, and goes by a table elsewhere (docs/performance.md). Results differ by rounding."""
    compile: Literal["auto"] | bool = "auto"
    """Let torch.compile make kernels for this network: about a minute at the start; `auto` does where a long run on a
    GPU was measured to be faster with them. Results differ by rounding. Not with `deterministic`."""
    deterministic: bool = False
    """Take only kernels that give the same bits each time, so that a run that was interrupted on a GPU ends in the same
    bits as one that was not; slower there. On the CPU all runs do. Nothing is compiled then, as the compiler may choose
    kernels by their timing."""
    optimizer: OptimizerConfig = AdamWConfig()
    parameter_groups: list[ParameterGroupConfig] = Field(default=[])
    """Parameters that are trained in another way, or not at all, by their names; the rest take `optimizer`."""
    lr_schedule: LRScheduleConfig = CosineLR()
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Bound on the gradient's norm; null for none."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | Literal["auto"] = "auto"
    """Decay of the averaged weights, which are the ones evaluated and exported; 0 switches averaging off. `auto`
    averages over about 5 % of the run's steps, and 2,000 at most."""
    validate_every_epochs: WholeOrAuto = "auto"
    """Epochs between validations; `auto` is 1, and more in a run of over 200 epochs, which is validated 100 times."""
    log_every_steps: int = Field(default=20, ge=1)
    """Optimizer steps between two entries of training losses."""
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    recovery: RecoveryConfig = RecoveryConfig()
    samples: SamplesConfig = SamplesConfig()

    def resolve(self, total_steps: int, steps_per_epoch: int) -> TrainingConfig:
        """The settings with every `auto` answered that depends on the length of the run."""
        epochs, answers = total_steps / steps_per_epoch, dict[str, object]()
        if self.ema_decay == "auto":
            answers["ema_decay"] = round(min(EMA_DECAY, max(0.0, 1 - 1 / (EMA_PART * total_steps))), 6)
        if self.validate_every_epochs == "auto":
            answers["validate_every_epochs"] = max(1, int(epochs / VALIDATIONS))
        if self.samples.every_epochs == "auto":
            answers["samples.every_epochs"] = max(1, int(epochs / GRIDS))
        return self.replace(**answers)

    @property
    def images_per_step(self) -> int:
        """`batch_size`, once it is a number."""
        assert self.batch_size != "auto", "resolved before the first step"
        return self.batch_size

    @model_validator(mode="after")
    def _same_bits_are_not_chosen_by_timing(self) -> TrainingConfig:
        if self.deterministic and self.compile is True:
            raise ValueError(
                "training.compile=true may choose kernels by their timing, and training.deterministic=true promises "
                "the same bits: leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _micro_batches_hold_images(self) -> TrainingConfig:
        if self.batch_size != "auto" and self.gradient_accumulation_steps > self.batch_size:
            raise ValueError(
                f"training.gradient_accumulation_steps ({self.gradient_accumulation_steps}) is larger than "
                f"training.batch_size ({self.batch_size}): a micro-batch would hold no image"
            )
        return self
