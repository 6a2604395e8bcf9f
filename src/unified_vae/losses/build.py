"""From settings to the objective: check that everything needed is at hand, then build the enabled terms.

A new term is one file, one field of `LossConfig` and one case in `_build_term`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unified_vae.config.loss import (
    CharbonnierConfig,
    FocalFrequencyConfig,
    HaarPSIConfig,
    L1Config,
    LaplacianConfig,
    LossConfig,
    LPIPSConfig,
    MSEConfig,
    MSSSIMConfig,
    PerceptualConfig,
    TermConfig,
)
from unified_vae.config.schedule import factor
from unified_vae.core.errors import ConfigError
from unified_vae.losses.charbonnier import Charbonnier
from unified_vae.losses.focal_frequency import FocalFrequency
from unified_vae.losses.haarpsi import HaarPSI
from unified_vae.losses.l1 import L1
from unified_vae.losses.laplacian import Laplacian
from unified_vae.losses.lpips import ARCHITECTURES, LPIPS
from unified_vae.losses.ms_ssim import MSSSIM
from unified_vae.losses.mse import MSE
from unified_vae.losses.objective import Objective
from unified_vae.losses.perceptual import Perceptual
from unified_vae.losses.pretrained import Announce, WeightsUnavailable, load_weights, to_stderr
from unified_vae.losses.term import DistortionTerm
from unified_vae.losses.vgg import VGG16, Backbone

PretrainedTerm = PerceptualConfig | LPIPSConfig


@dataclass(frozen=True)
class Substitution:
    """A term that cannot be had and what takes its weight, with the reason in plain words."""

    term: str
    replacement: str
    reason: str


def resolve_terms(
    config: LossConfig, known: Sequence[Substitution] | None = None, announce: Announce = to_stderr
) -> tuple[LossConfig, list[Substitution]]:
    """Check that the enabled terms' pretrained weights are at hand, downloading them where that is possible.

    A term without them gives its weight to haarpsi, which needs none, if its `missing` says `replace`. The
    returned settings say so: they are what the run records and builds from.

    Args:
        config: as the user composed it.
        known: for a run that is continued, what was replaced when it began. That stays replaced, even if its
            weights can be had by now, and nothing else is replaced any more.
        announce: told in one line before a download starts.

    Raises:
        EnvironmentProblem: weights are missing and the term is `strict` or was not replaced when the run began,
            or a weights_path is wrong.
    """
    replaced = {entry.term: entry for entry in known or ()}
    substitutions = []
    for name, term in config.distortion_terms().items():
        if not isinstance(term, PretrainedTerm):
            continue
        if name in replaced:
            config = _replaced_by_haarpsi(config, name, term)
            substitutions.append(replaced[name])
            continue
        try:
            _pretrained_weights(name, term, announce)
        except WeightsUnavailable as problem:
            if term.missing == "strict" or known is not None:
                raise
            config = _replaced_by_haarpsi(config, name, term)
            substitutions.append(Substitution(name, "haarpsi", problem.reason))
    return config, substitutions


def build_objective(
    config: LossConfig, channels: int, image_size: int, features_dtype: torch.dtype = torch.float32
) -> Objective:
    """The objective for images of [channels, image_size, image_size].

    Args:
        config: as `resolve_terms` returned it. Nothing is replaced here.
        channels: 1 or 3.
        image_size: height and width, in pixels.
        features_dtype: arithmetic of the pretrained networks' convolutions; all else is float32.

    Raises:
        ConfigError: an enabled term needs larger images.
        EnvironmentProblem: pretrained weights are not at hand.
    """
    terms = {name: _build_term(name, term, image_size) for name, term in config.distortion_terms().items()}
    for name, term in terms.items():
        if image_size < term.minimum_size:
            raise ConfigError(
                f"loss.{name} needs images of at least {term.minimum_size} px and "
                f"model.image_size is {image_size}: use larger images or set loss.{name}.weight to 0"
            )
    objective = Objective(config, terms, channels * image_size**2)
    for module in objective.modules():
        if isinstance(module, Backbone):
            module.dtype = features_dtype
    return objective


def _build_term(name: str, config: TermConfig, image_size: int) -> DistortionTerm:
    match config:
        case MSEConfig():
            return MSE()
        case L1Config():
            return L1()
        case CharbonnierConfig():
            return Charbonnier(config.epsilon)
        case LaplacianConfig():
            return Laplacian(image_size)
        case FocalFrequencyConfig():
            return FocalFrequency(config.alpha)
        case HaarPSIConfig():
            return HaarPSI()
        case MSSSIMConfig():
            return MSSSIM(image_size)
        case PerceptualConfig():
            return Perceptual(config, _pretrained_weights(name, config))
        case LPIPSConfig():
            return LPIPS(config.net, _pretrained_weights(name, config))
    raise AssertionError(f"no term is built for {type(config).__name__}")


def _pretrained_weights(name: str, term: PretrainedTerm, announce: Announce = to_stderr) -> dict[str, Tensor]:
    architecture = VGG16 if isinstance(term, PerceptualConfig) else ARCHITECTURES[term.net]
    return load_weights(architecture, term.weights_path, f"loss.{name}.weights_path", announce)


def _replaced_by_haarpsi(config: LossConfig, name: str, term: TermConfig) -> LossConfig:
    """`term` off and its weight added to haarpsi, with the schedule of the two that starts higher."""
    candidates = [config.haarpsi, term] if config.haarpsi.weight > 0 else [term]
    schedule = max((candidate.schedule for candidate in candidates), key=lambda schedule: factor(schedule, 0.0))
    haarpsi = HaarPSIConfig(weight=config.haarpsi.weight + term.weight, schedule=schedule)
    return config.replace(**{f"{name}.weight": 0.0, "haarpsi": haarpsi})
