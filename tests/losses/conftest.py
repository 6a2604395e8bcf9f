"""Images and backbone weights for the tests of the losses, made here from fixed seeds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from unified_vae.core.posterior import DiagonalGaussian
from unified_vae.core.vae_output import VAEOutput
from unified_vae.losses.vgg import ALEXNET, VGG16, Architecture

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
    """as_output(reconstruction, mean, logvar): a model's result; a standard normal posterior unless told."""

    def wrap(reconstruction: Tensor, mean: Tensor | None = None, logvar: Tensor | None = None) -> VAEOutput:
        mean = torch.zeros(len(reconstruction), 3) if mean is None else mean
        logvar = torch.zeros_like(mean) if logvar is None else logvar
        return VAEOutput(reconstruction, DiagonalGaussian(mean, logvar), mean)

    return wrap


def random_weights(architecture: Architecture) -> dict[str, Tensor]:
    """He et al. 2015 initialisation with the keys and shapes of torchvision's file."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for key, shape in (item for conv in architecture.convs() for item in conv.shapes().items()):
        spread = (2 / torch.Size(shape[1:]).numel()) ** 0.5 if len(shape) == 4 else 0.1
        weights[key] = spread * torch.randn(shape, generator=generator)
    return weights


@pytest.fixture(scope="session")
def vgg_weights() -> dict[str, Tensor]:
    return random_weights(VGG16)


@pytest.fixture(scope="session")
def alex_weights() -> dict[str, Tensor]:
    return random_weights(ALEXNET)


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
