"""Averaged weights: a second model that follows the first, evaluated and exported in its place.

It is a model of its own rather than a dictionary that is swapped in, so an interrupted evaluation cannot
leave raw and averaged weights exchanged.
"""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


class EMA(Generic[Model]):
    """Exponential moving average of a model's weights.

    Attributes:
        model: the averaged model, in eval mode; its parameters take no gradients.
    """

    def __init__(self, model: Model, decay: float) -> None:
        self.decay = decay
        self.model: Model = copy.deepcopy(model).eval().requires_grad_(False)
        self._pairs = _floating_pairs(self.model, model)
        self._copies = _other_pairs(self.model, model)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow the model after optimizer step `step` (counted from 1).

        The decay is min(decay, (1 + step) / (10 + step)), so that early averages do not remember the first
        weights (as in TensorFlow's ExponentialMovingAverage with num_updates).
        """
        decay = min(self.decay, (1 + step) / (10 + step)) if self.decay > 0 else 0.0
        averaged, current = self._pairs
        torch._foreach_lerp_(averaged, current, 1.0 - decay)
        for mine, theirs in zip(*self._copies, strict=True):
            mine.copy_(theirs)


Pairs = tuple[list[torch.Tensor], list[torch.Tensor]]


def _floating_pairs(averaged: nn.Module, model: nn.Module) -> Pairs:
    """Parameters, which are averaged. They are the live tensors, so their values are always current."""
    return [p.data for p in averaged.parameters()], [p.data for p in model.parameters()]


def _other_pairs(averaged: nn.Module, model: nn.Module) -> Pairs:
    """Buffers, which are copied: an average of a counter or of a statistic means nothing."""
    return list(averaged.buffers()), list(model.buffers())
