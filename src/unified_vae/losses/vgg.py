"""The convolutions of VGG-16 and AlexNet as fixed feature detectors, for the perceptual terms.

Simonyan & Zisserman 2015 (arXiv 1409.1556); Krizhevsky 2014 (arXiv 1404.5997). Built here from the layer
list that torchvision's files are made for, so that training never imports torchvision (7 s).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Mean and spread of ImageNet's pixels in [0, 1]. LPIPS writes the same numbers for pixels in [-1, 1].
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Conv:
    """A convolution followed by ReLU. `index` is its place in torchvision's `features`."""

    index: int
    inputs: int
    outputs: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    name: str | None = None  # of the features behind its ReLU, where a term may compare them

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Key in torchvision's file -> shape."""
        return {
            f"features.{self.index}.weight": (self.outputs, self.inputs, self.kernel, self.kernel),
            f"features.{self.index}.bias": (self.outputs,),
        }


@dataclass(frozen=True)
class Pool:
    """A maximum over windows."""

    kernel: int
    stride: int = 2


@dataclass(frozen=True)
class Architecture:
    """A backbone's layers, in order, and the file of its pretrained weights."""

    title: str
    file: str
    layers: tuple[Conv | Pool, ...]

    def convs(self) -> list[Conv]:
        """The convolutions alone."""
        return [layer for layer in self.layers if isinstance(layer, Conv)]

    def feature_names(self) -> list[str]:
        """The features that can be compared, shallow to deep."""
        return [conv.name for conv in self.convs() if conv.name]

    def up_to(self, names: list[str]) -> tuple[Conv | Pool, ...]:
        """The layers that the named features need."""
        deepest = max(i for i, layer in enumerate(self.layers) if isinstance(layer, Conv) and layer.name in names)
        return self.layers[: deepest + 1]

    def minimum_size(self, names: list[str]) -> int:
        """Image height and width, in pixels, from which on the named features exist."""
        size = 1
        for layer in reversed(self.up_to(names)):  # smallest input that gives `size` outputs
            padding = layer.padding if isinstance(layer, Conv) else 0
            size = max((size - 1) * layer.stride + layer.kernel - 2 * padding, 1)
        return size


def _vgg16() -> Architecture:
    layers: list[Conv | Pool] = []
    widths = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    ends = {2: "relu1_2", 4: "relu2_2", 7: "relu3_3", 10: "relu4_3", 13: "relu5_3"}  # last of each block
    index = 0
    for number, (inputs, outputs) in enumerate(pairwise(widths), start=1):
        layers.append(Conv(index, inputs, outputs, name=ends.get(number)))
        index += 2  # the convolution and its ReLU
        if number in ends:
            layers.append(Pool(2))
            index += 1
    return Architecture("VGG-16", "vgg16-397923af.pth", tuple(layers))


ALEXNET = Architecture(
    "AlexNet",
    "alexnet-owt-7be5be79.pth",
    (
        Conv(0, 3, 64, kernel=11, stride=4, padding=2, name="relu1"),
        Pool(3),
        Conv(3, 64, 192, kernel=5, padding=2, name="relu2"),
        Pool(3),
        Conv(6, 192, 384, name="relu3"),
        Conv(8, 384, 256, name="relu4"),
        Conv(10, 256, 256, name="relu5"),
    ),
)
VGG16 = _vgg16()


class Backbone(nn.Module):
    """Frozen features of [batch, 1 or 3, height, width] images in [0, 1].

    The weights are buffers outside the state dict: nothing to train, nothing in checkpoints. Gradients
    pass through to the images.

    Attributes:
        dtype: the arithmetic of the convolutions, float32 unless told. Pixels, lengths and differences are float32.
    """

    def __init__(self, architecture: Architecture, names: list[str], weights: dict[str, Tensor]) -> None:
        """Args:
        architecture: which layers.
        names: the features wanted; layers behind the deepest are left out.
        weights: as `pretrained.load_weights` gives them.
        """
        super().__init__()
        self.layers = architecture.up_to(names)
        self.names = set(names)
        self.dtype = torch.float32
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(_STD)[:, None, None], persistent=False)
        for layer in self.layers:
            for key in layer.shapes() if isinstance(layer, Conv) else ():
                self.register_buffer(key.replace(".", "_"), weights[key], persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """The named features, shallow to deep: [batch, features, height', width'], each place of length 1."""
        x = ((images.expand(-1, 3, -1, -1) - self.get_buffer("mean")) / self.get_buffer("std")).to(self.dtype)
        features = []
        for layer in self.layers:
            if isinstance(layer, Pool):
                x = F.max_pool2d(x, layer.kernel, layer.stride)
                continue
            weight, bias = (
                self.get_buffer(f"features_{layer.index}_{part}").to(self.dtype) for part in ("weight", "bias")
            )
            x = F.relu(F.conv2d(x, weight, bias, layer.stride, layer.padding))
            if layer.name in self.names:
                features.append(_unit_length(x.float()))
        return features

    def squared_differences(self, reconstruction: Tensor, target: Tensor) -> list[Tensor]:
        """Of each named layer, [batch, features, height', width']; the target's take no gradient."""
        with torch.no_grad():
            wanted = self(target)
        return [(a - b).square() for a, b in zip(self(reconstruction), wanted, strict=True)]


def _unit_length(features: Tensor) -> Tensor:
    """Features of length 1 at each place, as LPIPS compares them. Where all are 0 they stay 0."""
    return features * torch.rsqrt(features.square().sum(1, keepdim=True) + 1e-8)
