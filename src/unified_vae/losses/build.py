"""From settings to the objective: check that pretrained weights are available, then build the enabled terms."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch

# imported so that their terms are in `DistortionTerm.classes`
import unified_vae.losses.pixel
import unified_vae.losses.structural  # noqa: F401
from unified_vae.config.loss import HaarPSIConfig, LossConfig, PretrainedTermConfig
from unified_vae.config.schedule import factor
from unified_vae.core.errors import ConfigError
from unified_vae.losses.base import DistortionTerm
from unified_vae.losses.objective import Objective
from unified_vae.losses.perceptual import (
    ARCHITECTURES,
    Backbone,
    FeatureTerm,
    OnMessage,
    WeightsUnavailable,
    load_weights,
    needed_features,
)


@dataclass(frozen=True)
class Substitution:
    """A term that is not available and the one that takes its weight, with the reason in plain words."""

    term: str
    replacement: str
    reason: str


def print_to_stderr(line: str) -> None:
    """Announce a download where no display listens."""
    print(line, file=sys.stderr, flush=True)


def resolve_terms(
    config: LossConfig, known: Sequence[Substitution] | None = None, on_message: OnMessage = print_to_stderr
) -> tuple[LossConfig, list[Substitution]]:
    """Check that the enabled terms' pretrained weights are available, downloading them where that is possible.

    A term without them gives its weight to haarpsi, which needs none, if its `missing` says `replace`. The
    returned settings say so: they are what the run records and builds from.

    Args:
        config: as the user composed it.
        known: for a run that is continued, what was replaced when it began. That stays replaced, even if its
            weights are available by now, and nothing else is replaced any more.
        on_message: gets one line before a download starts.

    Raises:
        EnvironmentProblem: weights are missing and the term is `strict` or was not replaced when the run began,
            or a weights_path is wrong.
    """
    replaced = {entry.term: entry for entry in known or ()}
    substitutions = []
    checked: set[tuple[str, str | None]] = set()
    for name, term in config.distortion_terms().items():
        if not isinstance(term, PretrainedTermConfig):
            continue
        substitution = replaced.get(name)
        if substitution is None:
            net, _ = needed_features(term)
            if (net, term.weights_path) in checked:
                continue
            try:
                load_weights(ARCHITECTURES[net], term.weights_path, f"loss.{name}.weights_path", on_message)
                checked.add((net, term.weights_path))
                continue
            except WeightsUnavailable as problem:
                if term.missing == "strict" or known is not None:
                    raise
                substitution = Substitution(name, "haarpsi", problem.reason)
        substitutions.append(substitution)
        # the weight is added to that of haarpsi, with the schedule of the two that starts higher
        candidates = [config.haarpsi, term] if config.haarpsi.weight > 0 else [term]
        schedule = max((candidate.schedule for candidate in candidates), key=lambda schedule: factor(schedule, 0.0))
        haarpsi = HaarPSIConfig(weight=config.haarpsi.weight + term.weight, schedule=schedule)
        config = config.replace(**{f"{name}.weight": 0.0, "haarpsi": haarpsi})
    return config, substitutions


def build_objective(
    config: LossConfig, channels: int, image_size: int, features_dtype: torch.dtype = torch.float32
) -> Objective:
    """Build the objective for images of [channels, image_size, image_size].

    Args:
        config: as `resolve_terms` returned it. Nothing is replaced here.
        channels: 1 or 3.
        image_size: height and width, in pixels.
        features_dtype: arithmetic of the pretrained networks' convolutions; all else is float32.

    Raises:
        ConfigError: an enabled term needs larger images.
        EnvironmentProblem: pretrained weights are not available.
    """
    enabled = config.distortion_terms()

    # one backbone for all terms that compare features of the same network and file, with the features of all of them
    features: dict[tuple[str, str | None], set[str]] = {}
    for term in enabled.values():
        if isinstance(term, PretrainedTermConfig):
            net, names = needed_features(term)
            features.setdefault((net, term.weights_path), set()).update(names)

    terms: dict[str, DistortionTerm] = {}
    backbones: dict[tuple[str, str | None], Backbone] = {}
    for name, term in enabled.items():
        kind = DistortionTerm.classes[type(term)]
        if isinstance(term, PretrainedTermConfig):
            net, _ = needed_features(term)
            key = net, term.weights_path
            if key not in backbones:
                setting = f"loss.{name}.weights_path"
                weights = load_weights(ARCHITECTURES[net], term.weights_path, setting, print_to_stderr)
                backbones[key] = Backbone(net, weights, features[key], features_dtype)
            assert issubclass(kind, FeatureTerm)
            terms[name] = kind(term, backbones[key])
        else:
            terms[name] = kind(term, image_size)
        if image_size < terms[name].minimum_size:
            raise ConfigError(
                f"loss.{name} needs images of at least {terms[name].minimum_size} px and "
                f"model.image_size is {image_size}: use larger images or set loss.{name}.weight to 0"
            )
    return Objective(config, terms, channels * image_size**2)
