"""What `evaluate` and `compare` are asked for. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

DRAWS = 16
SAMPLES = 2000


class Weights(StrEnum):
    """Which weights of a checkpoint."""

    EMA = "ema"
    RAW = "raw"
    BOTH = "both"


class Group(StrEnum):
    """Metrics that are measured together."""

    RECONSTRUCTION = "reconstruction"
    LATENTS = "latents"
    LIKELIHOOD = "likelihood"
    SAMPLES = "samples"
    FACTORS = "factors"


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        samples: new pictures to draw for each density; None takes as many as there are images, at most SAMPLES.
        max_images: look at no more images; None looks at all.
        draws: latents an image for the bounds on the likelihood.
        skip: groups to leave out.
        inception: file of Inception's weights; None looks in the cache of downloaded weights.
        device: auto, cpu, ...; None as the run had it.
        seed: of everything that is drawn: latents, patches, resamples.
    """

    samples: int | None = None
    max_images: int | None = None
    draws: int = DRAWS
    skip: frozenset[Group] = frozenset()
    inception: Path | None = None
    device: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class EvaluateRequest:
    """One model.

    Attributes:
        target: a run's folder, a checkpoint's in it, or an exported model's.
        data: other images than the run's.
        checkpoint: a step, `best` or `last`; None takes the best there is.
        weights: None takes both where there are both.
        file: where the report is written; None is `evaluation.json` beside the run.
    """

    target: Path
    data: str | None = None
    checkpoint: str | None = None
    weights: Weights | None = None
    file: Path | None = None
    settings: Settings = Settings()


@dataclass(frozen=True)
class CompareRequest:
    """Several models.

    Attributes:
        targets: as for `EvaluateRequest`, two or more.
        data: images that all are measured on; None takes the runs', which have to be the same.
        output: folder for the three files.
    """

    targets: Sequence[Path]
    data: str | None = None
    output: Path = Path("comparison")
    settings: Settings = Settings()
