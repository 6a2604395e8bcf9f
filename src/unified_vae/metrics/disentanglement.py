"""Do single latents stand for single factors? MIG, SAP and DCI, as disentanglement_lib defines them.

Locatello et al. 2019 (arXiv 1811.12359): MIG by Chen et al. 2018 (arXiv 1802.04942), SAP by Kumar et al. 2018
(arXiv 1711.00848), DCI by Eastwood & Williams 2018. All are between 0 and 1; latents are posterior means, factors are
discrete. SAP and DCI fit classifiers of scikit-learn, DCI slowly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BINS = 20  # of each latent for MIG
SVM_C = 0.01

Latents = npt.NDArray[np.float64]
"""[images, latents]"""
Factors = npt.NDArray[np.int64]
"""[images, factors]"""
Progress = Callable[[int, int], None]


# --- mutual information gap ------------------------------------------------------------------------------


def binned(latents: Latents, bins: int = BINS) -> npt.NDArray[np.int64]:
    """Each latent in bins of equal width over its range: int [images, latents] from 1 on."""
    found = np.empty(latents.shape, dtype=np.int64)
    for unit, values in enumerate(latents.T):
        found[:, unit] = np.digitize(values, np.histogram(values, bins)[1][:-1])
    return found


def information(units: npt.NDArray[np.int64], factor: npt.NDArray[np.int64]) -> Latents:
    """Mutual information of each discrete column [images, columns] and a factor [images], in nats: [columns]."""
    images, columns = units.shape
    width = int(units.max()) + 1
    places = units + np.arange(columns) * width
    joint = np.stack(
        [np.bincount(places[factor == value].ravel(), minlength=columns * width) for value in np.unique(factor)],
        axis=-1,
    ).reshape(columns, width, -1)
    probability = joint / images
    independent = probability.sum(2, keepdims=True) * probability.sum(1, keepdims=True)
    ratio = np.divide(probability, independent, out=np.ones_like(probability), where=joint > 0)
    found: Latents = (probability * np.log(ratio)).sum((1, 2))
    return found


def mig(units: npt.NDArray[np.int64], factors: Factors) -> float:
    """Mean over factors of (best - second best latent's information on it) / the factor's entropy.

    Args:
        units: `binned` latents.
        factors: none of them constant.
    """
    gaps = []
    for factor in factors.T:
        best = np.sort(information(units, factor))
        gaps.append((best[-1] - best[-2]) / information(factor[:, None], factor)[0])
    return float(np.mean(gaps))


# --- separated attribute predictability -------------------------------------------------------------------


def sap_answers(
    latents: Latents, factors: Factors, test: Latents, test_factors: Factors, progress: Progress | None = None
) -> npt.NDArray[np.bool_]:
    """Whether a linear SVM on one latent names a factor's value: bool [test images, latents, factors].

    As in disentanglement_lib for discrete factors: C 0.01, classes balanced.
    """
    from sklearn.svm import LinearSVC

    right = np.zeros((len(test), latents.shape[1], factors.shape[1]), dtype=bool)
    for column in range(factors.shape[1]):
        for unit in range(latents.shape[1]):
            classifier = LinearSVC(C=SVM_C, class_weight="balanced", random_state=0)
            classifier.fit(latents[:, unit : unit + 1], factors[:, column])
            right[:, unit, column] = classifier.predict(test[:, unit : unit + 1]) == test_factors[:, column]
        if progress:
            progress(column + 1, factors.shape[1])
    return right


def sap(accuracy: npt.NDArray[np.float64]) -> float:
    """Mean over factors of best - second best accuracy; `accuracy` is [latents, factors]."""
    best = np.sort(accuracy, axis=0)
    return float((best[-1] - best[-2]).mean())


# --- disentanglement, completeness, informativeness --------------------------------------------------------


@dataclass(frozen=True)
class Importances:
    """What boosted trees that name the factors look at.

    Attributes:
        matrix: [latents, factors], absolute importances.
        right: bool [test images, factors], whether the answer is right.
    """

    matrix: npt.NDArray[np.float64]
    right: npt.NDArray[np.bool_]


def importances(
    latents: Latents, factors: Factors, test: Latents, test_factors: Factors, progress: Progress | None = None
) -> Importances:
    """Fit scikit-learn's GradientBoostingClassifier, with its own settings, to each factor."""
    from sklearn.ensemble import GradientBoostingClassifier

    matrix = np.zeros((latents.shape[1], factors.shape[1]))
    right = np.zeros(test_factors.shape, dtype=bool)
    for column in range(factors.shape[1]):
        model = GradientBoostingClassifier(random_state=0).fit(latents, factors[:, column])
        matrix[:, column] = np.abs(model.feature_importances_)
        right[:, column] = model.predict(test) == test_factors[:, column]
        if progress:
            progress(column + 1, factors.shape[1])
    return Importances(matrix, right)


def disentanglement(matrix: npt.NDArray[np.float64]) -> float:
    """1 - entropy of each latent's importances over factors, weighed by the latent's importance."""
    return _concentration(matrix)


def completeness(matrix: npt.NDArray[np.float64]) -> float:
    """1 - entropy of each factor's importances over latents, weighed by the factor's importance."""
    return _concentration(matrix.T)


def _concentration(matrix: npt.NDArray[np.float64]) -> float:
    """Rows as distributions: 1 - entropy to the base of their length, weighed by the rows' sums."""
    share = matrix + 1e-11  # as in disentanglement_lib, so that rows of zeros count as even
    share = share / share.sum(1, keepdims=True)
    entropy = -(share * np.log(share)).sum(1) / np.log(matrix.shape[1])
    total = matrix.sum()
    weights = matrix.sum(1) / total if total > 0 else np.full(len(matrix), 1 / len(matrix))
    return float(((1 - entropy) * weights).sum())
