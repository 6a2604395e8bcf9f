"""The linear basis of a set of images that a model starts from: principal components, completed by DCT components where
the images are too few to support more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from unified_vae.core.linear_gaussian import Spectrum

LARGEST_SIDE = 64  # pixels; the components of larger images are those of their averaged-down versions


@dataclass(frozen=True)
class PrincipalComponents:
    """Components of images that were averaged down to at most LARGEST_SIDE pixels a side.

    Attributes:
        mean: [channels, side, side].
        components: [count, channels, side, side], orthonormal as flattened vectors, by descending variance.
        eigenvalues: [count] variances in full-size pixels: an averaged pixel stands for all that it covers. Of held-out
            images where DCT components complete the basis.
        total: variance of a full-size image, summed over its pixel values.
        covered: pixels of a full-size image that one averaged pixel stands for, 1 up to LARGEST_SIDE.
        images: how many images (with their augmented versions) this was computed from.
        dct: how many of the components that the model starts from are DCT components; 0 for a PCA.
    """

    mean: Tensor
    components: Tensor
    eigenvalues: Spectrum
    total: float
    covered: float
    images: int
    dct: int = 0

    def to(self, device: torch.device) -> PrincipalComponents:
        """The same on another device."""
        return replace(self, mean=self.mean.to(device), components=self.components.to(device))

    def rest(self, count: int) -> float:
        """Variance beyond the first `count` components."""
        return max(self.total - float(self.eigenvalues[:count].sum()), 0.0)


def working_side(image_size: int) -> int:
    """Height and width of the images that the components are of."""
    return image_size // -(-image_size // LARGEST_SIDE)


def shrink(images: Tensor, side: int) -> Tensor:
    """[n, channels, size, size] -> [n, channels, side, side] by averaging; the same tensor where it fits."""
    size = images.shape[-1]
    if size == side:
        return images
    if size % side == 0:  # the adaptive one has no deterministic gradient on a GPU
        return F.avg_pool2d(images, size // side)
    return F.adaptive_avg_pool2d(images, side)


def enlarge(pictures: Tensor, size: int) -> Tensor:
    """[n, channels, side, side] -> [n, channels, size, size], bilinear; the same tensor where it fits."""
    if pictures.shape[-1] == size:
        return pictures
    return F.interpolate(pictures, size=(size, size), mode="bilinear", align_corners=False)


def project(images: Tensor, basis: PrincipalComponents) -> Tensor:
    """Coordinates [n, count] of images [n, channels, size, size]."""
    centred = shrink(images, basis.mean.shape[-1]) - basis.mean
    return centred.flatten(1) @ basis.components.flatten(1).T


def compose(coordinates: Tensor, basis: PrincipalComponents, size: int) -> Tensor:
    """Images [n, channels, size, size] of coordinates [n, k]: the linear reconstruction from k components."""
    kept = basis.components[: coordinates.shape[1]].flatten(1)
    pictures = torch.addmm(basis.mean.flatten(), coordinates, kept).unflatten(1, basis.mean.shape)
    return enlarge(pictures, size)
