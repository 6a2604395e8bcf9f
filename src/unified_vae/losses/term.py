"""What every distortion term is: a differentiable distance of two batches of images, one number an image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn


class DistortionTerm(nn.Module, ABC):
    """A distance t(reconstruction, target) >= 0 that is 0 for equal images.

    A subclass is one file: it gives `forward` and the class attributes below, a config field in
    `LossConfig` and a line in `build.py`. It holds no trainable parameters and no saved state.

    Attributes:
        degree: p in t ~ |error|^p, measured at the errors that a trained VAE makes (docs/objective.md).
            The objective needs it to turn the term into a likelihood: 2 for squared errors, 1 for absolute.
        floor: the value below which the term says nothing, set by the rounding of 8-bit pixels. It keeps
            the calibrated scale away from 0.
        minimum_size: height and width in pixels from which on the term is defined.
    """

    degree: ClassVar[float]
    floor: ClassVar[float]
    minimum_size: int = 1

    @abstractmethod
    def forward(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """The distance of each pair of images.

        Args:
            reconstruction: [batch, channels, height, width], float32, nominally in [0, 1] but not clipped.
            target: the same shape, float32, in [0, 1].

        Returns:
            [batch], a mean per pixel value (or a bounded index), so that its scale is that of any image size.
        """
