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
        # trained parameters are averaged; these are the live tensors, so their values are always current
        pairs = list(zip(self.model.parameters(), model.parameters(), strict=True))
        self._averaged = [average.data for average, current in pairs if current.requires_grad]
        self._current = [current.data for _, current in pairs if current.requires_grad]
        # buffers and fixed parameters are copied: an average of a counter or of a statistic means nothing
        self._copies = [
            *zip(self.model.buffers(), model.buffers(), strict=True),
            *((copied.data, source) for copied, source in pairs if not source.requires_grad),
        ]
        self._versions = [-1] * len(self._copies)

    @torch.no_grad()
    def update(self, step: int, skip: Tensor | None = None) -> None:
        """Follow the model after optimizer step `step` (counted from 1).

        The decay is min(decay, (1 + step) / (10 + step)), so that early averages do not remember the first
        weights (as in TensorFlow's ExponentialMovingAverage with num_updates).

        Args:
            skip: float32 scalar on the device, 1 where the average is to stay as it is, else 0; None means 0.
        """
        decay = min(self.decay, (1 + step) / (10 + step)) if self.decay > 0 else 0.0
        if skip is None or decay == 0.0:  # a copy of weights that a skipped step has not changed changes nothing
            torch._foreach_lerp_(self._averaged, self._current, 1.0 - decay)
        elif skip.device.type in ("cpu", "cuda"):
            # the device itself decides: an average is gradient descent on half the squared distance, and fused SGD
            # heeds a flag. With weight decay 1 and the weights for the negative gradient it computes
            # averaged -= lr * (averaged - current). No copy is made.
            torch._fused_sgd_(
                self._averaged,
                self._current,
                [],
                weight_decay=1.0,
                momentum=0.0,
                lr=1.0 - decay,
                dampening=0.0,
                nesterov=False,
                maximize=True,
                is_first_step=False,
                found_inf=skip,
            )
        elif not bool(skip):
            torch._foreach_lerp_(self._averaged, self._current, 1.0 - decay)
        # what is not averaged is copied where it was written since the last time: on most steps nothing was
        for number, (copied, source) in enumerate(self._copies):
            if self._versions[number] != source._version:
                copied.copy_(source)
                self._versions[number] = source._version
