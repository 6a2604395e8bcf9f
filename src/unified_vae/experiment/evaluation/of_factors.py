"""Figures of disentanglement, where the images are labelled with the factors they were made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import numpy.typing as npt

from unified_vae.experiment.evaluation.figure import Figure
from unified_vae.experiment.evaluation.request import Group
from unified_vae.metrics import bootstrap
from unified_vae.metrics import latents as latent_metrics
from unified_vae.metrics.latents import Labels, Latents

MOST_IMAGES = 1000  # of which half fit DCI: with 64 latents and 18 factors the trees of DCI take minutes
MIG_RESAMPLES = 100
WORDS = "as disentanglement_lib defines it"

Told = Callable[[str, int, int], None]


def of_factors(means: Latents, labels: Mapping[str, npt.NDArray[np.int64]], seed: int, told: Told) -> list[Figure]:
    """MIG, and the three of DCI."""
    mig, *dci = rows()
    latents, factors = means[:MOST_IMAGES], _varied(labels)
    if why := _cannot(latents, factors):
        return [figure.unavailable(why) for figure in rows()]
    try:
        import sklearn  # noqa: F401
    except ImportError:
        why = "it needs the package scikit-learn: uv sync --extra metrics"
        return [_mig(mig, latents, factors, seed), *(figure.unavailable(why) for figure in dci)]
    half = len(latents) // 2
    split = (latents[:half], factors[:half], latents[half:], factors[half:])
    return [
        _mig(mig, latents, factors, seed),
        *_dci(dci, *latent_metrics.dci(*split, partial(told, "DCI: a classifier for each factor")), seed),
    ]


def rows() -> list[Figure]:
    """The rows of this group, without their numbers."""

    def row(name: str, title: str, words: str) -> Figure:
        return Figure(name, title, Group.FACTORS, "", "higher", f"{WORDS}, {words}")

    trees = "boosted trees of scikit-learn"
    return [
        row("mig", "MIG", "20 bins"),
        row("dci.disentanglement", "DCI, disentanglement", trees),
        row("dci.completeness", "DCI, completeness", trees),
        row("dci.informativeness", "DCI, informativeness", f"{trees}, accuracy on the other half"),
    ]


def _varied(labels: Mapping[str, npt.NDArray[np.int64]]) -> Labels:
    """The factors that vary, also among the first half: [images, factors]."""
    rows = [values[:MOST_IMAGES] for values in labels.values()]
    kept = [values for values in rows if len(np.unique(values[: len(values) // 2])) > 1]
    return np.stack(kept, 1) if kept else np.zeros((0, 0), dtype=np.int64)


def _cannot(latents: Latents, factors: Labels) -> str:
    if factors.shape[1] < 2:
        have = "no label that varies" if factors.shape[1] == 0 else "one label"
        return f"it needs images labelled with two factors or more, and these have {have}; the built-in set has 18"
    return "" if latents.shape[1] > 1 else "it needs two latents or more"


def _mig(figure: Figure, latents: Latents, factors: Labels, seed: int) -> Figure:
    units = latent_metrics.bin_latents(latents)
    value = latent_metrics.mig(units, factors)
    found = [
        latent_metrics.mig(units[rows], factors[rows])
        for rows in bootstrap.resamples(len(units), seed, figure.name, MIG_RESAMPLES)
    ]
    return figure.measured(value, bootstrap.around(value, found), len(units))


def _dci(
    rows: list[Figure], importances: npt.NDArray[np.float64], correct: npt.NDArray[np.bool_], seed: int
) -> list[Figure]:
    images, right = 2 * len(correct), correct.mean(1)
    interval = bootstrap.interval_of_means(right, seed, rows[2].name)
    none = "no interval: each resample would fit all trees anew"
    return [
        rows[0].measured(latent_metrics.concentration(importances), None, images, none),
        rows[1].measured(latent_metrics.concentration(importances.T), None, images, none),
        rows[2].measured(float(right.mean()), interval, images, "interval over the tested half"),
    ]
