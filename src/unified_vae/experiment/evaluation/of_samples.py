"""Figures of new pictures: FID, KID, precision and recall, and the distance of patches, for each latent density."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unified_vae.core.counter import key
from unified_vae.experiment.evaluation.figure import Better, Figure
from unified_vae.experiment.evaluation.networks import Networks
from unified_vae.experiment.evaluation.of_images import (
    FEW_RESAMPLES,
    Draws,
    Told,
    frechet_figure,
    patches_figure,
    patches_measured,
)
from unified_vae.experiment.evaluation.pictures import BATCH, MOST_VALUES
from unified_vae.experiment.evaluation.request import SAMPLES, Group, Settings
from unified_vae.experiment.evaluation.seeing import Originals, Progress
from unified_vae.metrics import bootstrap
from unified_vae.metrics.sets import (
    INCEPTION,
    NEIGHBORS,
    InceptionFeatures,
    kernel_distance,
    precision,
    resampled_kernel_distances,
)
from unified_vae.models.density.base import LatentDensity
from unified_vae.models.vae import VAE

KERNEL_RESAMPLES = 200
FITTED = "fitted"
"""Ends the names of figures of pictures drawn from a fitted density."""


def of_samples(
    model: VAE,
    density: LatentDensity,
    originals: Originals,
    networks: Networks,
    settings: Settings,
    progress: Progress,
    told: Told,
) -> list[Figure]:
    """All figures of pictures drawn from one density."""
    kept, features = _drawn(model, density, originals, networks, settings, progress)
    fitted = density.kind != "normal"
    words = "fitted density" if fitted else density.describe()
    drawn = _Drawn(FITTED if fitted else "normal", words, kept, features)
    rows = [
        *_of_features(drawn, originals, networks.inception, settings.seed, told),
        _of_patches(drawn, originals, settings.seed, told),
    ]
    return (
        [replace(row, note=_joined(row.note, f"drawn from {density.describe()}")) for row in rows] if fitted else rows
    )


@dataclass(frozen=True)
class _Drawn:
    """Pictures of one density.

    Attributes:
        name: ends the names of figures.
        words: ends their titles.
        kept: the first pictures, clipped.
        features: of all, where there is a network for them.
    """

    name: str
    words: str
    kept: Tensor
    features: Tensor | None


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def _drawn(
    model: VAE,
    density: LatentDensity,
    originals: Originals,
    networks: Networks,
    settings: Settings,
    progress: Progress,
) -> tuple[Tensor, Tensor | None]:
    """The first pictures, clipped, and the features of all."""
    wanted = settings.samples or min(SAMPLES, originals.pictures.count)
    count = wanted if isinstance(networks.inception, InceptionFeatures) else min(wanted, len(originals.kept))
    kept, features = [], []
    for done, made in _pictures(model, density, count, settings.seed):
        if done < len(originals.kept):
            kept.append(made[: len(originals.kept) - done].cpu())
        if isinstance(networks.inception, InceptionFeatures):
            features.append(networks.inception(made))
        progress(done + len(made), count)
    return torch.cat(kept), torch.cat(features) if features else None


@torch.no_grad()
def _pictures(model: VAE, density: LatentDensity, count: int, seed: int) -> Iterator[tuple[int, Tensor]]:
    """(how many before, a batch of pictures in [0, 1]); the same whatever the batch."""
    generator = torch.Generator().manual_seed(key(seed, "evaluation samples") % 2**63)
    step = max(1, min(BATCH, MOST_VALUES // (model.channels * model.image_size**2)))
    device = next(model.parameters()).device
    for done in range(0, count, step):
        latents = density.sample(min(step, count - done), generator)
        yield done, model.decode(latents.to(device)).clamp(0, 1)


def _of_features(
    drawn: _Drawn, originals: Originals, network: InceptionFeatures | str, seed: int, told: Told
) -> list[Figure]:
    seen_at = f"{originals.pictures.size} px, resized to 299"

    def row(name: str, title: str, better: Better, unit: str = "") -> Figure:
        return Figure(
            f"{name}.{drawn.name}", f"{title}, {drawn.words}", Group.SAMPLES, unit, better, INCEPTION, seen_at
        )

    rows = [
        row("fid", "FID", "lower"),
        row("kid", "KID", "lower", "thousandths"),
        row("precision", "precision", "higher"),
        row("recall", "recall", "higher"),
    ]
    if isinstance(network, str):
        return [figure.unavailable(network) for figure in rows]
    assert drawn.features is not None and originals.features is not None
    real, made = originals.features, drawn.features
    draws: Draws = list(
        zip(
            bootstrap.resamples(len(real), seed, "real", KERNEL_RESAMPLES),
            bootstrap.resamples(len(made), seed, "made", KERNEL_RESAMPLES),
            strict=True,
        )
    )
    return [
        frechet_figure(rows[0], real, made, draws[:FEW_RESAMPLES], told),
        _kid(rows[1], real, made, draws),
        _inside(rows[2], real, made, seed),
        _inside(rows[3], made, real, seed),
    ]


def _kid(figure: Figure, real: Tensor, made: Tensor, draws: Draws) -> Figure:
    if min(len(real), len(made)) < 2:
        return figure.unavailable("it needs two images or more")
    value = 1e3 * kernel_distance(real, made)
    found = [1e3 * distance for distance in resampled_kernel_distances(real, made, draws)]
    note = "unbiased over all pairs, not over subsets"
    interval = bootstrap.around(value, found, -math.inf)  # unbiased, and so of either sign
    return figure.measured(value, interval, min(len(real), len(made)), note)


def _inside(figure: Figure, manifold_of: Tensor, tested: Tensor, seed: int) -> Figure:
    """The part of `tested` inside the manifold of the others; resampled with that manifold as it is."""
    if len(manifold_of) <= NEIGHBORS:
        return figure.unavailable(f"it needs more than {NEIGHBORS} images")
    inside = precision(manifold_of, tested).double().numpy()
    interval = bootstrap.interval_of_means(inside, seed, figure.name)
    note = f"k = {NEIGHBORS}, in Inception's features"
    return figure.measured(float(inside.mean()), interval, len(tested), note)


def _of_patches(drawn: _Drawn, originals: Originals, seed: int, told: Told) -> Figure:
    figure = patches_figure(f"swd.{drawn.name}", f"sliced Wasserstein, {drawn.words}", Group.SAMPLES, originals)
    if figure.missing:
        return figure
    made = drawn.kept
    count = min(len(made), len(originals.kept))
    draws: Draws = list(
        zip(
            bootstrap.resamples(count, seed, "real patches", FEW_RESAMPLES),
            bootstrap.resamples(count, seed, "made patches", FEW_RESAMPLES),
            strict=True,
        )
    )
    return patches_measured(figure, originals.kept[:count], made[:count], draws, seed, told)
