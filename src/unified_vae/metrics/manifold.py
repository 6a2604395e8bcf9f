"""Precision and recall of samples by k-nearest-neighbour manifolds (Kynkäänniemi et al. 2019, arXiv 1904.06991).

A set's manifold is the union of balls around its features, each as large as the distance to the k-th nearest other one.
Precision is the part of the samples inside the manifold of the real images, recall the converse.
"""

from __future__ import annotations

import torch
from torch import Tensor

NEIGHBOURS = 3  # the paper's k
BLOCK = 1024


def precision(real: Tensor, samples: Tensor, neighbours: int = NEIGHBOURS) -> Tensor:
    """Whether each sample is inside the manifold of the real images: bool [samples].

    Recall is `precision(samples, real)`.

    Args:
        real, samples: features [images, features]; more real ones than `neighbours`.
    """
    real, samples = real.double(), samples.double()
    radii = radii_of(real, neighbours)
    return torch.cat([(torch.cdist(part, real) <= radii).any(1) for part in samples.split(BLOCK)])


def radii_of(features: Tensor, neighbours: int = NEIGHBOURS) -> Tensor:
    """Distance of each feature to its k-th nearest other one: [images]."""
    if len(features) <= neighbours:
        raise ValueError(f"{len(features)} images have no {neighbours} neighbours each")
    parts = [torch.cdist(part, features).kthvalue(neighbours + 1, dim=1).values for part in features.split(BLOCK)]
    return torch.cat(parts)  # the nearest one is the feature itself
