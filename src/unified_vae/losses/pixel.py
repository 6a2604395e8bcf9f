"""Distances of single pixel values: MSE, L1 and Charbonnier."""

from __future__ import annotations

from torch import Tensor

from unified_vae.config.loss import CharbonnierConfig, L1Config, MSEConfig
from unified_vae.losses.base import DistortionTerm


class MSE(DistortionTerm, config=MSEConfig):
    """Squared error per pixel value: the negative logarithm of a Gaussian, up to scale."""

    degree = 2.0
    floor = (1 / 255) ** 2 / 12  # variance of rounding to 8 bits

    def forward(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """See `DistortionTerm.forward`."""
        return (reconstruction - target).square().flatten(1).mean(1)


class L1(DistortionTerm, config=L1Config):
    """Absolute error per pixel value: the negative logarithm of a Laplace density, up to scale."""

    degree = 1.0
    floor = 1 / 1020  # mean absolute error of rounding to 8 bits: a quarter of 1/255

    def forward(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """See `DistortionTerm.forward`."""
        return (reconstruction - target).abs().flatten(1).mean(1)


class Charbonnier(DistortionTerm, config=CharbonnierConfig):
    """sqrt(error^2 + epsilon^2) - epsilon, per pixel value: 0 at identity, with a gradient that fades out there.

    Charbonnier, Blanc-Feraud, Aubert, Barlaud, "Two deterministic half-quadratic regularization algorithms for
    computed imaging", ICIP 1994; as a loss for images Lai et al. 2017 (LapSRN, arXiv 1704.03915).
    """

    degree = 1.03  # at epsilon 0.001; 1.12 at 0.005
    floor = 4.6e-4

    def __init__(self, config: CharbonnierConfig, image_size: int | None = None) -> None:
        super().__init__(config, image_size)
        self.epsilon = config.epsilon

    def forward(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """See `DistortionTerm.forward`."""
        squared = (reconstruction - target).square()
        # The definition times (root + epsilon) / (root + epsilon): small errors do not drown in epsilon's rounding.
        distance = squared / ((squared + self.epsilon**2).sqrt() + self.epsilon)
        return distance.flatten(1).mean(1)
