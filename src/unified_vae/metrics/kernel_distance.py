"""Kernel distance of two sets: squared maximum mean discrepancy of a cubic kernel, unbiased (Binkowski et al. 2018).

"Demystifying MMD GANs", arXiv 1801.01401; in features of Inception v3 this is the KID. Torchmetrics and torch-fidelity
average it over random subsets of 1,000 images; here it is taken once over all images, which estimates the same value
with less noise.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

BLOCK = 1024  # rows of a kernel matrix at once


def kernel_distance(first: Tensor, second: Tensor) -> float:
    """MMD^2 of features [images, features] under k(x, y) = (x.y / features + 1)^3; may be slightly negative."""
    ones = [torch.ones(1, len(rows), dtype=torch.float64) for rows in (first, second)]
    return float(_distances(first, second, *ones)[0])


def resampled_distances(
    first: Tensor, second: Tensor, draws: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]
) -> list[float]:
    """The distance for each pair of resamples; an image's copies are not compared with one another."""
    weights = [
        torch.stack([_counts(pair[side], len(rows)) for pair in draws]) for side, rows in ((0, first), (1, second))
    ]
    found: list[float] = _distances(first, second, *weights).tolist()
    return found


def _counts(drawn: npt.NDArray[np.int64], images: int) -> Tensor:
    return torch.from_numpy(np.bincount(drawn, minlength=images)).double()


def _distances(first: Tensor, second: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """[resamples] for multiplicities [resamples, images] of both sets."""
    first, second = first.double(), second.double()
    return (
        _sums(first, first, one, one, inside=True) / _pairs(one)
        + _sums(second, second, other, other, inside=True) / _pairs(other)
        - 2 * _sums(first, second, one, other, inside=False) / (one.sum(1) * other.sum(1))
    )


def _pairs(weights: Tensor) -> Tensor:
    return weights.sum(1).square() - weights.square().sum(1)


def _sums(rows: Tensor, columns: Tensor, left: Tensor, right: Tensor, inside: bool) -> Tensor:
    total = torch.zeros(len(left), dtype=torch.float64)
    for start in range(0, len(rows), BLOCK):
        part = rows[start : start + BLOCK]
        kernel = (part @ columns.T / rows.shape[1] + 1) ** 3
        if inside:
            kernel[torch.arange(len(part)), torch.arange(start, start + len(part))] = 0
        total += ((left[:, start : start + BLOCK] @ kernel) * right).sum(1)
    return total
