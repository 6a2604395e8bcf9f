"""Images and backbone weights for the tests of the losses, made here from fixed seeds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from unified_vae.core.distributions import DiagonalGaussian, VAEOutput
from unified_vae.losses.perceptual import ARCHITECTURES, Net

Images = Callable[..., Tensor]


@pytest.fixture(scope="session")
def images() -> Images:
    """images(batch, channels, size): pictures in [0, 1] with smooth shades, edges and texture, by formula."""

    def draw(batch: int = 4, channels: int = 3, size: int = 32) -> Tensor:
        y, x = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
        planes = []
        for number in range(batch * channels):
            shade = 0.5 + 0.3 * torch.sin(3 * x + number) * torch.cos(2 * y + 0.5 * number)
            disc = ((x - 0.3 - 0.05 * (number % 7)) ** 2 + (y - 0.5) ** 2 < 0.06).float()
            stripes = 0.1 * torch.sign(torch.sin((20 + number % 5) * (x + 0.4 * y)))
            planes.append((shade + 0.3 * disc + stripes).clamp(0, 1))
        return torch.stack(planes).view(batch, channels, size, size)

    return draw


@pytest.fixture(scope="session")
def normal() -> Callable[..., Tensor]:
    """normal(*shape, seed=0): standard normal numbers."""
    return lambda *shape, seed=0: torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="session")
def as_output() -> Callable[..., VAEOutput]:
    """as_output(reconstruction, mean, logvar): a model's result; a standard normal posterior by default."""

    def wrap(reconstruction: Tensor, mean: Tensor | None = None, logvar: Tensor | None = None) -> VAEOutput:
        mean = torch.zeros(len(reconstruction), 3) if mean is None else mean
        logvar = torch.zeros_like(mean) if logvar is None else logvar
        return VAEOutput(reconstruction, DiagonalGaussian(mean, logvar), mean)

    return wrap


def random_weights(net: Net) -> dict[str, Tensor]:
    """He et al. 2015 initialization with the keys and shapes of torchvision's file."""
    generator = torch.Generator().manual_seed(0)
    weights, channels = {}, 3
    for conv in ARCHITECTURES[net].convs:
        shape = (conv.channels, channels, conv.kernel, conv.kernel)
        spread = (2 / (channels * conv.kernel**2)) ** 0.5
        weights[f"features.{conv.position}.weight"] = spread * torch.randn(shape, generator=generator)
        weights[f"features.{conv.position}.bias"] = 0.1 * torch.randn(conv.channels, generator=generator)
        channels = conv.channels
    return weights


@pytest.fixture(scope="session")
def vgg_weights() -> dict[str, Tensor]:
    return random_weights("vgg")


@pytest.fixture(scope="session")
def alex_weights() -> dict[str, Tensor]:
    return random_weights("alex")


@pytest.fixture(scope="session")
def vgg_file(vgg_weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of VGG-16's form with random convolutions, in half precision to spare the disk."""
    path = tmp_path_factory.mktemp("weights") / "vgg16.pth"
    torch.save({key: value.half() for key, value in vgg_weights.items()}, path)
    return path


@pytest.fixture(scope="session")
def alex_file(alex_weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    torch.save(alex_weights, path)
    return path
