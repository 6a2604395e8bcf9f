"""A small training step for tests, and one call of it at a given learning rate."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from unified_vae.config.loss import LossConfig
from unified_vae.config.optim import AdamWConfig
from unified_vae.data.batches import TrainBatch
from unified_vae.losses.build import build_objective
from unified_vae.models.build import build_model
from unified_vae.optim.build import build_optimizers
from unified_vae.training.checkpointer import OptimizerState
from unified_vae.training.distributed import Runtime
from unified_vae.training.ema import EMA
from unified_vae.training.train_step import VAEStep, to_unit_range

CPU = Runtime(torch.device("cpu"), torch.float32)
TOTAL_STEPS = 100


def small_step(model, loss: LossConfig, images: Tensor, *, optimizer=None, runtime=CPU, fused=True, **settings):
    """The step of a small VAE, with a scale calibrated on `images` [n, channels, size, size]."""
    network = build_model(model, seed=0).to(memory_format=runtime.memory_format)
    objective = build_objective(loss, model.channels, model.image_size)
    pixels = to_unit_range(images, runtime.memory_format)
    with torch.no_grad():
        objective.observe(objective.measure(network(pixels, torch.zeros(len(pixels), network.latents)), pixels))
    optimizers = build_optimizers(optimizer or AdamWConfig(), network, fused)
    settings = {"seed": 3, "total_steps": TOTAL_STEPS, "max_grad_norm": 1.0, **settings}
    return VAEStep(runtime, network, EMA(network, 0.9), objective, optimizers, **settings)


def take(train_step: VAEStep, images: Tensor, step: int, lr: float = 1e-3) -> Tensor:
    """Take step number `step` (counted from 0) on images [n, channels, size, size]; returns its metrics."""
    for optimizer in train_step.optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = lr
    return train_step(TrainBatch(np.arange(len(images)), 0, images), step)


def optimizer_tensors(train_step: VAEStep) -> dict[str, Tensor]:
    """The state of a step's optimizers, by `parameter/slot`."""
    return OptimizerState(train_step.optimizers.values(), train_step.model).state_dict()
