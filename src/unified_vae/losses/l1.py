"""Mean absolute error: the negative logarithm of a Laplace density, up to scale."""

from __future__ import annotations

from torch import Tensor

from unified_vae.losses.term import DistortionTerm


class L1(DistortionTerm):
    """Absolute error per pixel value."""

    degree = 1.0
    floor = 1 / 1020  # mean absolute error of rounding to 8 bits: a quarter of 1/255

    def forward(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """See `DistortionTerm.forward`."""
        return (reconstruction - target).abs().flatten(1).mean(1)
