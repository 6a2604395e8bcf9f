"""Perceptual terms on pretrained networks: distance of VGG-16 features, and LPIPS; one pass of a network serves both.

The networks are built here, with the layers of torchvision's files, because importing torchvision takes seconds. Their
weights come from a file of the user, from torch.hub's cache, or from torchvision's address. A file is used only after
its sha256 (where its name has one), keys, shapes and values were checked, and it is read without pickle.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import socket
import zipfile
from abc import abstractmethod
from collections.abc import Callable, Collection
from http.client import HTTPException
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.request import Request, urlopen

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unified_vae.config.loss import LPIPSConfig, PerceptualConfig, PretrainedTermConfig
from unified_vae.core.errors import EnvironmentProblem, shell_quote
from unified_vae.core.files import expand_user
from unified_vae.losses.base import DistortionTerm

OFFLINE_VARIABLE = "UNIFIED_VAE_OFFLINE"
PROBE_SECONDS = 6.0  # limit for the first answer of the server: an absent network must not hold up the start
STALL_SECONDS = 60.0  # silence after which a download is given up

Net = Literal["vgg", "alex"]
OnMessage = Callable[[str], None]


class Conv(NamedTuple):
    """A convolution followed by ReLU. `position` is its index in torchvision's `features`."""

    position: int
    channels: int  # of its output
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    pool: int = 0  # side of the max-pooling of stride 2 before it, 0 for none
    feature: str = ""  # name of its output, where a term may compare it


class Architecture(NamedTuple):
    """A network's convolutions, in order, and where the file of its pretrained weights is published."""

    title: str
    url: str
    convs: tuple[Conv, ...]

    @property
    def file(self) -> str:
        """Name of the weights file."""
        return self.url.rpartition("/")[2]

    @property
    def features(self) -> list[str]:
        """The features that can be compared, shallow to deep."""
        return [conv.feature for conv in self.convs if conv.feature]

    def up_to(self, features: Collection[str]) -> tuple[Conv, ...]:
        """Return the convolutions that these features need."""
        return self.convs[: 1 + max(i for i, conv in enumerate(self.convs) if conv.feature in features)]

    def minimum_size(self, features: Collection[str]) -> int:
        """Return the smallest image height and width, in pixels, that has these features."""
        size = 1
        for conv in reversed(self.up_to(features)):  # smallest input that gives `size` outputs
            size = max((size - 1) * conv.stride + conv.kernel - 2 * conv.padding, 1)
            size = (size - 1) * 2 + conv.pool if conv.pool else size
        return size


ARCHITECTURES: dict[Net, Architecture] = {
    # Simonyan & Zisserman 2015, arXiv 1409.1556
    "vgg": Architecture(
        "VGG-16",
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        (
            Conv(0, 64),
            Conv(2, 64, feature="relu1_2"),
            Conv(5, 128, pool=2),
            Conv(7, 128, feature="relu2_2"),
            Conv(10, 256, pool=2),
            Conv(12, 256),
            Conv(14, 256, feature="relu3_3"),
            Conv(17, 512, pool=2),
            Conv(19, 512),
            Conv(21, 512, feature="relu4_3"),
            Conv(24, 512, pool=2),
            Conv(26, 512),
            Conv(28, 512, feature="relu5_3"),
        ),
    ),
    # Krizhevsky 2014, arXiv 1404.5997
    "alex": Architecture(
        "AlexNet",
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        (
            Conv(0, 64, kernel=11, stride=4, padding=2, feature="relu1"),
            Conv(3, 192, kernel=5, padding=2, pool=3, feature="relu2"),
            Conv(6, 384, pool=3, feature="relu3"),
            Conv(8, 256, feature="relu4"),
            Conv(10, 256, feature="relu5"),
        ),
    ),
}


class Backbone(nn.Module):
    """Compare the frozen features of two batches of [batch, 1 or 3, height, width] images in [0, 1].

    The weights are buffers outside the state dict: nothing to train, nothing in checkpoints. Gradients
    pass through to the images.
    """

    def __init__(
        self,
        net: Net,
        weights: dict[str, Tensor],
        features: Collection[str] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Args:
        net: which network.
        weights: its convolutions, as `load_weights` returns them.
        features: those to compute, all by default; layers behind the deepest are left out.
        dtype: arithmetic of the convolutions. Pixels, lengths and differences are float32.
        """
        super().__init__()
        self.net = net
        self.names = set(features or ARCHITECTURES[net].features)
        self.convs = ARCHITECTURES[net].up_to(self.names)
        self.dtype = dtype
        # Mean and spread of ImageNet's pixels in [0, 1]. LPIPS writes the same numbers for pixels in [-1, 1].
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None], persistent=False)
        for conv in self.convs:
            for part in ("weight", "bias"):
                value = weights[f"features.{conv.position}.{part}"].to(dtype)
                self.register_buffer(f"{part}_{conv.position}", value, persistent=False)

    def forward(self, reconstruction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the squared differences of the features by name, [batch, channels, height', width'].

        `target` gets no gradient.
        """
        with torch.no_grad():
            expected = self.features(target)
        return {name: (value - expected[name]).square() for name, value in self.features(reconstruction).items()}

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Return the features by name: [batch, channels, height', width'], of length 1 over channels."""
        x = ((images.expand(-1, 3, -1, -1) - self.get_buffer("mean")) / self.get_buffer("std")).to(self.dtype)
        features = {}
        for conv in self.convs:
            if conv.pool:
                x = F.max_pool2d(x, conv.pool, 2)
            weight, bias = self.get_buffer(f"weight_{conv.position}"), self.get_buffer(f"bias_{conv.position}")
            x = F.relu(F.conv2d(x, weight, bias, conv.stride, conv.padding))
            if conv.feature in self.names:
                # unit length as in LPIPS; where all channels are 0 they stay 0
                y = x.float()
                features[conv.feature] = y * torch.rsqrt(y.square().sum(1, keepdim=True) + 1e-8)
        return features


def needed_features(config: PretrainedTermConfig) -> tuple[Net, list[str]]:
    """Return the network of a term and the features that it compares, shallow to deep."""
    if isinstance(config, PerceptualConfig):
        return "vgg", [name for name in ARCHITECTURES["vgg"].features if name in config.layers]
    assert isinstance(config, LPIPSConfig)
    return config.net, ARCHITECTURES[config.net].features


class FeatureTerm(DistortionTerm):
    """A term that compares the features of a backbone, which another term may use too."""

    def __init__(self, config: PretrainedTermConfig, backbone: Backbone) -> None:
        """Args:
        config: the term's settings.
        backbone: its network, with the features of `needed_features` at least.
        """
        super().__init__(config)
        self.backbone = backbone
        net, self.features = needed_features(config)
        self.minimum_size = ARCHITECTURES[net].minimum_size(self.features)

    def forward(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """See `DistortionTerm.forward`."""
        return self.distance(self.backbone(reconstruction, target))

    @abstractmethod
    def distance(self, differences: dict[str, Tensor]) -> Tensor:
        """Return the distance of each pair of images, [batch], from what the backbone gives for them."""


class Perceptual(FeatureTerm, config=PerceptualConfig):
    """Squared difference of unit-length VGG-16 features, summed over channels, averaged over places and layers.

    Unit length (as in LPIPS) bounds it by 2 and removes the layers' very different magnitudes. Johnson, Alahi, Fei-Fei
    2016, arXiv 1603.08155.
    """

    degree = 1.7
    floor = 3e-5

    def distance(self, differences: dict[str, Tensor]) -> Tensor:
        """See `FeatureTerm.distance`."""
        return torch.stack([differences[name].sum(1).mean((1, 2)) for name in self.features]).mean(0)


class LPIPS(FeatureTerm, config=LPIPSConfig):
    """LPIPS 0.1: squared difference of unit-length features, weighted after human opinions, summed over layers.

    Zhang, Isola, Efros, Shechtman, Wang 2018, arXiv 1801.03924.
    """

    degree = 1.7
    floor = 1e-5

    def __init__(self, config: LPIPSConfig, backbone: Backbone) -> None:
        """See `FeatureTerm`.

        Raises:
            EnvironmentProblem: torchmetrics, which has the fitted weights, is not installed or its file is damaged.
        """
        super().__init__(config, backbone)
        for name, head in lpips_heads(config.net).items():
            self.register_buffer(f"head_{name}", head, persistent=False)

    def distance(self, differences: dict[str, Tensor]) -> Tensor:
        """See `FeatureTerm.distance`."""
        layers = [F.conv2d(differences[name], self.get_buffer(f"head_{name}")) for name in self.features]
        return torch.stack([layer.mean((1, 2, 3)) for layer in layers]).sum(0)


def lpips_heads(net: Net) -> dict[str, Tensor]:
    """Return the fitted weights of LPIPS for each feature, [1, channels, 1, 1].

    They are a small file inside torchmetrics, located without importing it (9 s).

    Raises:
        EnvironmentProblem: torchmetrics is not installed or its file is not as expected.
    """
    spec = importlib.util.find_spec("torchmetrics")
    package = Path(spec.origin).parent if spec and spec.origin else Path("torchmetrics")
    path = package / "functional" / "image" / "lpips_models" / f"{net}.pth"
    convs = [conv for conv in ARCHITECTURES[net].convs if conv.feature]
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        heads = {conv.feature: content[f"lin{i}.model.1.weight"].float() for i, conv in enumerate(convs)}
        if [tuple(head.shape) for head in heads.values()] != [(1, conv.channels, 1, 1) for conv in convs]:
            raise ValueError
    except Exception as problem:  # missing, damaged or of another layout: reinstalling fixes all of them
        raise EnvironmentProblem(
            f"{path} is missing, damaged or of another layout ({type(problem).__name__}): reinstall torchmetrics"
        ) from None
    return heads


def load_weights(
    architecture: Architecture, weights_path: str | None, setting: str, on_message: OnMessage
) -> dict[str, Tensor]:
    """Return the network's convolution weights, checked, in float32 on the CPU.

    Args:
        architecture: which network.
        weights_path: the user's own file, or None to look in torch.hub's cache and then to download.
        setting: dotted name of the option that holds the path, for messages.
        on_message: gets one line before a download starts.

    Raises:
        WeightsUnavailable: nothing in the cache and no download, or a damaged file in the cache.
        EnvironmentProblem: the user's own file is missing, unreadable, damaged or of another network.
    """
    title, url, convs = architecture
    path = cached_file(url) if weights_path is None else expand_user(weights_path, setting)
    weights, channels = {}, 3
    try:
        content = fetch_state_dict(title, url, setting, on_message) if weights_path is None else read_state_dict(path)
        for conv in convs:
            shape = (conv.channels, channels, conv.kernel, conv.kernel)
            channels = conv.channels
            for key, expected in (
                (f"features.{conv.position}.weight", shape),
                (f"features.{conv.position}.bias", shape[:1]),
            ):
                if key not in content:
                    raise EnvironmentProblem(f"{path} is not of {title}: {key} is missing")
                if content[key].shape != expected:
                    sizes = f"{list(content[key].shape)}, not {list(expected)}"
                    raise EnvironmentProblem(f"{path} is not of {title}: {key} is {sizes}")
                weights[key] = content[key].detach().to(torch.float32, copy=True)  # the file may be mapped
                if not weights[key].isfinite().all():
                    raise EnvironmentProblem(f"{path} is damaged: {key} holds NaN/Inf")
    except WeightsUnavailable:
        raise
    except EnvironmentProblem as problem:
        raise EnvironmentProblem(f"{setting}: {problem}; give the file {architecture.file}") from None
    return weights


class WeightsUnavailable(EnvironmentProblem):
    """Published weights that are neither cached nor can be downloaded.

    Attributes:
        reason: what is missing and why, without a remedy.
        remedy: how to get the file by hand.
    """

    def __init__(self, reason: str, url: str, setting: str) -> None:
        path = cached_file(url)
        command = shell_quote("curl", "--create-dirs", "-o", path, url)
        self.reason = reason
        self.remedy = f"put the file {path.name} there ({command}; its sha256 begins {_digest_in(path.name)})"
        term = setting.removesuffix(".weights_path")
        super().__init__(f"{term}: {reason}; {self.remedy} or give its path as {setting}")


def cached_file(url: str) -> Path:
    """Return the place of a published file in torch.hub's cache, which the environment variable TORCH_HOME moves."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]


def fetch_state_dict(
    title: str, url: str, setting: str, on_message: OnMessage, other_names: Collection[str] = ()
) -> dict[str, Tensor]:
    """Return the tensors of a published file from torch.hub's cache, downloading it where it is absent.

    Args:
        title: of the network, for messages.
        url: where it is published; the name of the file ends in the first digits of its sha256.
        setting: the option that takes a file instead, for messages.
        on_message: gets one line before a download starts.
        other_names: under which the cache may have the same file.

    Raises:
        WeightsUnavailable: there is no such file and no network, or the cached file is damaged.
    """
    path = cached_file(url)
    path = next((other for name in other_names if (other := path.with_name(name)).exists()), path)
    if not path.exists():
        missing = f"the pretrained {title} weights are not in {path.parent} and"
        if os.environ.get(OFFLINE_VARIABLE, "0") not in ("", "0"):
            raise WeightsUnavailable(f"{missing} downloads are switched off by {OFFLINE_VARIABLE}", url, setting)
        timeout = socket.getdefaulttimeout()
        try:
            # the server's first answer shows whether there is a network, and has the size
            with urlopen(Request(url, method="HEAD"), timeout=PROBE_SECONDS) as answer:
                size = f"{int(answer.headers.get('Content-Length') or 0) / 1e6:.0f} MB"
            on_message(f"Downloading the pretrained {title} weights ({size}) to {path}, once for all runs.")
            path.parent.mkdir(parents=True, exist_ok=True)
            socket.setdefaulttimeout(STALL_SECONDS)  # torch's downloader would wait forever
            torch.hub.download_url_to_file(url, str(path), hash_prefix=_digest_in(path.name))
        except (OSError, HTTPException, RuntimeError) as problem:  # RuntimeError: the sha256 differs
            cause = getattr(problem, "reason", problem)  # of URLError: the system's error, which has a number in front
            why = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
            raise WeightsUnavailable(f"{missing} cannot be downloaded ({why})", url, setting) from None
        finally:
            socket.setdefaulttimeout(timeout)
    try:
        return read_state_dict(path)
    except EnvironmentProblem as problem:
        raise WeightsUnavailable(f"{problem}; delete it", url, setting) from None


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file saved by torch; its sha256 is compared where its name has one, and it runs no code.

    Raises:
        EnvironmentProblem: it is missing, unreadable, damaged or holds no tensors.
    """
    try:
        if path.exists() and not path.is_file():
            raise EnvironmentProblem(f"{path} is not a file")
        if expected := _digest_in(path.name):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()[: len(expected)]
            if digest != expected:
                raise EnvironmentProblem(f"{path} is damaged (its sha256 begins {digest}, not {expected})")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except EnvironmentProblem:
        raise
    except OSError as problem:
        raise EnvironmentProblem(f"{path} cannot be read ({problem.strerror or problem})") from None
    except Exception as problem:  # the unpickler's many errors all mean: not a file of tensors
        raise EnvironmentProblem(f"{path} is damaged or no file of weights ({type(problem).__name__})") from None
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise EnvironmentProblem(f"{path} holds no state dict")
    return content


def _digest_in(name: str) -> str:
    """The first digits of its sha256, in which the name of a published file ends; empty where it has none."""
    match = re.search(r"-([0-9a-f]{8,64})\.", name)
    return match[1] if match else ""
