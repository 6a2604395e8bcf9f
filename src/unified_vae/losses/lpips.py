"""LPIPS 0.1: deep features weighted after human opinions (Zhang et al. 2018, arXiv 1801.03924)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from unified_vae.core.errors import EnvironmentProblem
from unified_vae.losses.term import DistortionTerm
from unified_vae.losses.vgg import ALEXNET, VGG16, Architecture, Backbone

ARCHITECTURES: dict[Literal["vgg", "alex"], Architecture] = {"vgg": VGG16, "alex": ALEXNET}


def linear_heads(net: Literal["vgg", "alex"]) -> list[Tensor]:
    """The fitted weights of each feature, one [1, features, 1, 1] a layer.

    They are a small file inside torchmetrics, found without importing it (9 s).

    Raises:
        EnvironmentProblem: torchmetrics is not installed or its file is not as expected.
    """
    spec = importlib.util.find_spec("torchmetrics")
    if spec is None or spec.origin is None:
        raise EnvironmentProblem(
            "loss.lpips needs the package torchmetrics, which holds its linear weights: install it"
        )
    path = Path(spec.origin).parent / "functional" / "image" / "lpips_models" / f"{net}.pth"
    wanted = [(1, conv.outputs, 1, 1) for conv in ARCHITECTURES[net].convs() if conv.name]
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        heads = [content[f"lin{number}.model.1.weight"].float() for number in range(len(wanted))]
    except Exception as problem:  # missing, damaged or of another layout: all are mended by installing it again
        raise EnvironmentProblem(
            f"{path} is missing or damaged ({type(problem).__name__}): reinstall torchmetrics"
        ) from None
    if [tuple(head.shape) for head in heads] != wanted:
        raise EnvironmentProblem(f"{path} does not fit {ARCHITECTURES[net].title}: reinstall torchmetrics")
    return heads


class LPIPS(DistortionTerm):
    """Squared difference of unit-length features, weighed by the linear heads, summed over layers."""

    degree = 1.7
    floor = 1e-5

    def __init__(self, net: Literal["vgg", "alex"], weights: dict[str, Tensor]) -> None:
        """Args:
        net: which backbone.
        weights: its convolutions, as `pretrained.load_weights` gives them.
        """
        super().__init__()
        architecture = ARCHITECTURES[net]
        names = architecture.feature_names()
        self.backbone = Backbone(architecture, names, weights)
        self.minimum_size = architecture.minimum_size(names)
        for number, head in enumerate(linear_heads(net)):
            self.register_buffer(f"head_{number}", head, persistent=False)

    def forward(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """See `DistortionTerm.forward`."""
        differences = self.backbone.squared_differences(reconstruction, target)
        layers = [F.conv2d(d, self.get_buffer(f"head_{number}")) for number, d in enumerate(differences)]
        return torch.stack([layer.mean((1, 2, 3)) for layer in layers]).sum(0)
