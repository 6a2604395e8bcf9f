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
        self._pairs = _trained_pairs(self.model, model)
        self._copies = _other_pairs(self.model, model)
        self._versions = [-1] * len(self._copies[0])

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
        self._follow_the_rest()

    def _follow_the_rest(self) -> None:
        """Copy what is not averaged, where it was written since the last time: on most steps nothing was."""
        for place, (mine, theirs) in enumerate(zip(*self._copies, strict=True)):
            if self._versions[place] != theirs._version:
                mine.copy_(theirs)
                self._versions[place] = theirs._version


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


def _trained_pairs(averaged: nn.Module, model: nn.Module) -> Pairs:
    """Trained parameters, which are averaged. They are the live tensors, so their values are always current."""
    pairs = zip(averaged.parameters(), model.parameters(), strict=True)
    trained = [(mine.data, theirs.data) for mine, theirs in pairs if theirs.requires_grad]
    return [mine for mine, _ in trained], [theirs for _, theirs in trained]


def _other_pairs(averaged: nn.Module, model: nn.Module) -> Pairs:
    """Buffers and fixed parameters, which are copied: an average of a counter or of a statistic means nothing."""
    pairs = zip(averaged.parameters(), model.parameters(), strict=True)
    fixed = [(mine.data, theirs) for mine, theirs in pairs if not theirs.requires_grad]
    return (
        [*averaged.buffers(), *(mine for mine, _ in fixed)],
        [*model.buffers(), *(theirs for _, theirs in fixed)],
    )
