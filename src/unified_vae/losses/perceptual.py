"""Distance of VGG-16 features of unit length (Johnson, Alahi, Fei-Fei 2016, arXiv 1603.08155)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from unified_vae.config.loss import PerceptualConfig
from unified_vae.losses.term import DistortionTerm
from unified_vae.losses.vgg import VGG16, Backbone


class Perceptual(DistortionTerm):
    """Squared difference of unit-length features, summed over features, averaged over places and layers.

    Unit length (as in LPIPS) bounds it by 2 and takes the layers' very different magnitudes out.
    """

    degree = 1.7
    floor = 3e-5

    def __init__(self, config: PerceptualConfig, weights: dict[str, Tensor]) -> None:
        super().__init__()
        layers = cast(list[str], config.layers)
        self.backbone = Backbone(VGG16, layers, weights)
        self.minimum_size = VGG16.minimum_size(layers)

    def forward(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """See `DistortionTerm.forward`."""
        differences = self.backbone.squared_differences(reconstruction, target)
        return torch.stack([d.sum(1).mean((1, 2)) for d in differences]).mean(0)
