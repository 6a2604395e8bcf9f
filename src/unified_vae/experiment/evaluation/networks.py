"""The pretrained networks that some metrics need, or the sentence that says why one is not here and how to get it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from unified_vae.core.errors import EnvironmentProblem
from unified_vae.experiment.evaluation.request import Group
from unified_vae.losses import pretrained
from unified_vae.losses.lpips import ARCHITECTURES, LPIPS
from unified_vae.losses.pretrained import Announce, BadFile, NoDownload, WeightsUnavailable
from unified_vae.metrics.sets import INCEPTION_FILE, INCEPTION_OTHER_NAMES, InceptionFeatures, inception_url

NETS: tuple[Literal["alex", "vgg"], ...] = ("alex", "vgg")


@dataclass(frozen=True)
class Networks:
    """Each a network, or words in its place.

    Attributes:
        lpips: backbone -> LPIPS with it.
        inception: features for FID, KID, precision and recall.
    """

    lpips: Mapping[str, LPIPS | str]
    inception: InceptionFeatures | str


def at_hand(size: int, device: torch.device, skip: frozenset[Group], file: Path | None, announce: Announce) -> Networks:
    """Find, check and load them; download where that is possible.

    Args:
        size: of the images, in pixels.
        skip: groups whose networks are not wanted.
        file: Inception's weights, where the user names them.

    Raises:
        EnvironmentProblem: the file that the user names cannot be used.
    """
    if Group.RECONSTRUCTION in skip and Group.SAMPLES in skip:
        return Networks(dict.fromkeys(NETS, "left out with --skip"), "left out with --skip")
    lpips: dict[str, LPIPS | str] = {net: _lpips(net, size, device, announce) for net in NETS}
    return Networks(lpips, _inception(device, file, announce))


def _lpips(net: Literal["alex", "vgg"], size: int, device: torch.device, announce: Announce) -> LPIPS | str:
    architecture = ARCHITECTURES[net]
    needed = architecture.minimum_size(architecture.feature_names())
    if size < needed:
        return f"it needs images of at least {needed} px"
    try:
        weights = pretrained.load_weights(architecture, None, f"lpips.{net}.weights_path", announce)
        return LPIPS(net, weights).to(device)
    except WeightsUnavailable as problem:
        return f"{problem.reason}; {problem.cure}"
    except EnvironmentProblem as problem:
        return str(problem)


def _inception(device: torch.device, file: Path | None, announce: Announce) -> InceptionFeatures | str:
    try:
        address = inception_url()
        weights = _state_dict(file) if file else _found(address, announce)
        return InceptionFeatures(weights, device)
    except BadFile as problem:
        if file is not None:
            raise EnvironmentProblem(f"--inception: {problem}; give the file {INCEPTION_FILE}") from None
        return f"{problem}; delete it and {_cure(address)}"
    except NoDownload as problem:
        folder = pretrained.cache_folder()
        return f"the pretrained Inception v3 weights are not in {folder} and {problem}; {_cure(address)}"
    except EnvironmentProblem as problem:
        if file is not None:
            raise EnvironmentProblem(f"--inception {file}: {problem}") from None
        return str(problem)


def _cure(address: str) -> str:
    return f"put the file there ({pretrained.fetched_by_hand(INCEPTION_FILE, address)}) or name it with --inception"


def _found(address: str, announce: Announce) -> Mapping[str, Tensor]:
    """From the cache of downloaded weights, under either of its names; else downloaded into it."""
    folder = pretrained.cache_folder()
    for name in (INCEPTION_FILE, *INCEPTION_OTHER_NAMES):
        if (folder / name).exists():
            return _state_dict(folder / name)
    pretrained.download("Inception v3", folder / INCEPTION_FILE, lambda: address, announce)
    return _state_dict(folder / INCEPTION_FILE)


def _state_dict(path: Path) -> Mapping[str, Tensor]:
    try:
        content = pretrained.read_tensors(path)
    except OSError as problem:
        raise BadFile(f"{path} cannot be read ({problem.strerror or problem})") from None
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise BadFile(f"{path} holds no state dict")
    return content
