"""Fréchet distance of two sets by the means and covariances of their features (Heusel et al. 2017, arXiv 1706.08500).

In features of Inception v3 this is the FID. The formula is the paper's; its trace of a matrix square root is
taken from eigenvalues, or from singular values where there are fewer images than features.
"""

from __future__ import annotations

import torch
from torch import Tensor


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Squared 2-Wasserstein distance of the normal distributions with the sets' means and covariances.

    Args:
        first, second: features [images, features], two images or more each.
    """
    one, other = _centred(first), _centred(second)
    crossed = _nuclear_norm(one, other) if max(len(one), len(other)) < one.shape[1] else _trace_of_root(one, other)
    spread = one.square().sum() + other.square().sum() - 2 * crossed
    return float((first.double().mean(0) - second.double().mean(0)).square().sum() + spread)


def _centred(features: Tensor) -> Tensor:
    """A, float64 [images, features], such that A^T A is the covariance."""
    rows = features.double()
    return (rows - rows.mean(0)) / (len(rows) - 1) ** 0.5


def _nuclear_norm(one: Tensor, other: Tensor) -> Tensor:
    """tr (A^T A B^T B)^(1/2): the singular values of A B^T."""
    return torch.linalg.svdvals(one @ other.T).sum()


def _trace_of_root(one: Tensor, other: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(one.T @ one)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    return torch.linalg.eigvalsh(root @ (other.T @ other) @ root).clamp_min(0).sqrt().sum()
