"""The Charbonnier distance: absolute error, rounded off near zero.

Charbonnier, Blanc-Feraud, Aubert, Barlaud, "Two deterministic half-quadratic regularization algorithms for
computed imaging", ICIP 1994; as a loss for images Lai et al. 2017 (LapSRN, arXiv 1704.03915).
"""

from __future__ import annotations

from torch import Tensor

from unified_vae.losses.term import DistortionTerm


class Charbonnier(DistortionTerm):
    """sqrt(error^2 + epsilon^2) - epsilon, per pixel value: 0 at identity, with a gradient that fades out there."""

    degree = 1.03  # at epsilon 0.001; 1.12 at 0.005
    floor = 4.6e-4

    def __init__(self, epsilon: float) -> None:
        """Args:
        epsilon: error, as a part of the pixel range, below which the distance is quadratic.
        """
        super().__init__()
        self.epsilon = epsilon

    def forward(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """See `DistortionTerm.forward`."""
        squared = (reconstruction - target).square()
        # The definition times (root + epsilon) / (root + epsilon): small errors do not drown in epsilon's rounding.
        distance = squared / ((squared + self.epsilon**2).sqrt() + self.epsilon)
        return distance.flatten(1).mean(1)
