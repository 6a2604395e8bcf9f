"""A linear layer whose outputs can be told to leave a good start softly."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GentleLinear(nn.Linear):
    """Weights times a gain for each output, plus a bias: gain * (W x) + b.

    An optimizer of the Adam kind moves every weight by the learning rate, so a layer of n inputs moves its output by n
    times as much in its first step. In the encoder's head, of 4,096 inputs, that threw the posterior means off by more
    than their own spread, and what a start at PCA gave was lost at once. With a gain of 1/sqrt(n), the parametrisation
    of Jacot et al. 2018 (arXiv 1806.07572, section 3), an output leaves softly.

    Attributes:
        gain: [outputs], 1 until `silence`; a buffer, so that a file of weights says what it was trained with.
    """

    gain: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("gain", torch.ones(outputs))

    def forward(self, features: Tensor) -> Tensor:
        """[batch, inputs] -> [batch, outputs]."""
        return torch.addcmul(self.bias, F.linear(features, self.weight), self.gain)

    @torch.no_grad()
    def silence(self, first: int, count: int) -> None:
        """Let `count` outputs from `first` on begin at zero, and softly."""
        rows = slice(first, first + count)
        self.weight[rows] = 0
        self.bias[rows] = 0
        self.gain[rows] = self.in_features**-0.5

    @torch.no_grad()
    def replace(self, rows: Tensor, donor: GentleLinear) -> None:
        """Take the outputs `rows` ([outputs], bool, on this module's device) from a layer of the same shape."""
        for mine, theirs in ((self.weight, donor.weight), (self.bias, donor.bias), (self.gain, donor.gain)):
            mine[rows] = theirs.to(mine)[rows]
