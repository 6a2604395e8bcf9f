"""Base class of the distortion terms: a differentiable distance between two batches of images, one number per image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from unified_vae.config.loss import TermConfig


class DistortionTerm(nn.Module, ABC):
    """A distance t(reconstruction, target) >= 0 that is 0 for equal images.

    A new term is a subclass, `class Huber(DistortionTerm, config=HuberConfig)`, and a field `huber: HuberConfig` of
    `LossConfig`: `build_objective` finds the class by the type of the field. A subclass gives `forward` and the class
    attributes below. It holds no trainable parameters and no saved state.

    Attributes:
        degree: p in t ~ |error|^p, measured at the errors that a trained VAE makes (docs/objective.md).
            The objective needs it to turn the term into a likelihood: 2 for squared errors, 1 for absolute.
        floor: the value below which the term carries no information, set by the rounding of 8-bit pixels. It keeps
            the calibrated scale away from 0.
        minimum_size: smallest height and width, in pixels, for which the term is defined.
        classes: the class of each config type.
    """

    degree: ClassVar[float]
    floor: ClassVar[float]
    minimum_size: int = 1
    classes: ClassVar[dict[type[TermConfig], type[DistortionTerm]]] = {}

    def __init_subclass__(cls, config: type[TermConfig] | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        if config is not None:
            DistortionTerm.classes[config] = cls

    def __init__(self, config: TermConfig, image_size: int | None = None) -> None:
        """Args:
        config: the term's settings.
        image_size: height and width of the images, in pixels, for terms that depend on it.
        """
        super().__init__()

    @abstractmethod
    def forward(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """Return the distance of each pair of images.

        Args:
            reconstruction: [batch, channels, height, width], float32, nominally in [0, 1] but not clipped.
            target: the same shape, float32, in [0, 1].

        Returns:
            [batch], a mean per pixel value (or a bounded index), so that its scale is that of any image size.
        """
