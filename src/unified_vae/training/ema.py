"""Averaged weights: a second model that follows the first, evaluated and exported in its place.

It is a model of its own rather than a dictionary that is swapped in, so an interrupted evaluation cannot
leave raw and averaged weights exchanged.
"""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

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
    def update(self, step: int, skip: Tensor | None = None) -> None:
        """Follow the model after optimizer step `step` (counted from 1).

        The decay is min(decay, (1 + step) / (10 + step)), so that early averages do not remember the first
        weights (as in TensorFlow's ExponentialMovingAverage with num_updates).

        Args:
            skip: float32 scalar on the device, 1 where the average is to stay as it is, else 0; None means 0.
        """
        decay = min(self.decay, (1 + step) / (10 + step)) if self.decay > 0 else 0.0
        averaged, current = self._pairs
        if skip is None or decay == 0.0:  # a copy of weights that a skipped step has not changed changes nothing
            torch._foreach_lerp_(averaged, current, 1.0 - decay)
        else:
            _approach_unless(skip, averaged, current, 1.0 - decay)
        for mine, theirs in zip(*self._copies, strict=True):
            mine.copy_(theirs)


def _approach_unless(skip: Tensor, averaged: list[Tensor], current: list[Tensor], part: float) -> None:
    """The same where `skip` is 0, and nothing where it is 1, decided on the device where there are kernels for that.

    An average is gradient descent on half the squared distance, and fused SGD heeds a flag: with weight decay 1 and
    the weights for the negative gradient it computes averaged -= part * (averaged - current). No copy is made.
    """
    if skip.device.type not in ("cpu", "cuda"):
        if not bool(skip):
            torch._foreach_lerp_(averaged, current, part)
        return
    torch._fused_sgd_(
        averaged,
        current,
        [],
        weight_decay=1.0,
        momentum=0.0,
        lr=part,
        dampening=0.0,
        nesterov=False,
        maximize=True,
        is_first_step=False,
        found_inf=skip,
    )


Pairs = tuple[list[torch.Tensor], list[torch.Tensor]]


def _floating_pairs(averaged: nn.Module, model: nn.Module) -> Pairs:
    """Parameters, which are averaged. They are the live tensors, so their values are always current."""
    return [p.data for p in averaged.parameters()], [p.data for p in model.parameters()]


def _other_pairs(averaged: nn.Module, model: nn.Module) -> Pairs:
    """Buffers, which are copied: an average of a counter or of a statistic means nothing."""
    return list(averaged.buffers()), list(model.buffers())
