"""From an optimizer's config to the optimizer."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from unified_vae.config.optim import AdamConfig, AdamWConfig, OptimizerConfig, SGDConfig
from unified_vae.optim.light_start import leave_the_compiler_alone


def build_optimizer(config: OptimizerConfig, model: nn.Module, fused: bool) -> Optimizer:
    """The optimizer over the trainable parameters of `model`, in two groups: decayed and exempt.

    Args:
        config: a member of the typed union.
        model: its biases and norm gains (every parameter of fewer than two dimensions) are not decayed.
        fused: one kernel for all parameters, which can also skip an update on the device itself
            (the `found_inf` that the training step sets), without waiting for the host.
    """
    leave_the_compiler_alone()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decay = 0.0 if isinstance(config, AdamConfig) else config.weight_decay
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    match config:
        case AdamWConfig():
            return AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=fused)
        case AdamConfig():
            return Adam(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=fused)
        case SGDConfig():
            nesterov = config.nesterov and config.momentum > 0
            sgd = SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov, fused=fused)
            if config.momentum > 0:  # a skipped first step would leave the fused kernel's momentum uninitialised
                for parameter in trainable:
                    sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            return sgd
