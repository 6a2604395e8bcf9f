"""Mean squared error: the negative logarithm of a Gaussian, up to scale."""

from __future__ import annotations

from torch import Tensor

from unified_vae.losses.term import DistortionTerm


class MSE(DistortionTerm):
    """Squared error per pixel value."""

    degree = 2.0
    floor = (1 / 255) ** 2 / 12  # variance of rounding to 8 bits

    def forward(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """See `DistortionTerm.forward`."""
        return (reconstruction - target).square().flatten(1).mean(1)
