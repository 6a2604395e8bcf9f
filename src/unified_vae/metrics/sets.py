"""Distances between two sets of images: Fréchet, kernel, precision and recall, sliced Wasserstein, and Inception.

Those of features are between tensors [images, features]; in features of Inception v3 they are the FID and the KID.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from unified_vae.core.errors import EnvironmentProblem

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_OTHER_NAMES = ("pt_inception-2015-12-05-6726825d.pth",)  # the same file, as pytorch-fid names it
INCEPTION = "Inception v3 of 2015-12-05, features of 2,048, torch-fidelity"

BLOCK = 1024  # rows of a matrix of pairs at once
NEIGHBORS = 3  # k of Kynkäänniemi et al.

PATCH = 7  # pixels a side
PATCHES_PER_IMAGE = 128  # at each level
DIRECTION_BATCHES, DIRECTIONS = 4, 128  # 512 projections in all
SMALLEST_LEVEL = 16  # pixels a side
PER_THOUSAND = 1e3  # distances of patches are given in thousandths, as in the paper
SPREAD_DIRECTIONS = 32  # along which resamples are compared: their spread needs fewer than their value

PairDraws = Sequence[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]
"""Pairs of resamples: indices of images of the first and of the second set."""

_LINE = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
_KERNEL = _LINE[:, None] * _LINE[None, :]


# --- Inception -------------------------------------------------------------------------------------------


class InceptionFeatures:
    """Features of images [n, 1 or 3, height, width] in [0, 1], rounded to 8 bits: [n, 2048], float32 on the CPU.

    Of Inception v3, 2015-12-05: the network that FID is defined with, as torch-fidelity has it. Its resize is
    TensorFlow 1's, bit for bit; another resize changes FID by whole points (Parmar, Zhang, Zhu 2022, arXiv 2104.11222).
    """

    def __init__(self, weights: Mapping[str, Tensor], device: torch.device) -> None:
        """Args:
        weights: a state dict as it is published, read without running code.

        Raises:
            EnvironmentProblem: torch-fidelity is not installed, or the weights are of another network.
        """
        inception_url()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        torch.save(dict(weights), file := io.BytesIO())  # the library would read a path with pickle
        file.seek(0)
        try:
            network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=file)
            self.network = network.to(device)
        except (RuntimeError, TypeError, AttributeError) as problem:
            why = str(problem).splitlines()[0].rstrip(":.")
            raise EnvironmentProblem(f"the weights are not those of Inception v3 ({why})") from None
        self.device = device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """See the class."""
        pixels = (images.to(self.device).clamp(0, 1) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)
        features: Tensor = self.network(pixels)[0]
        return features.float().cpu()


def inception_url() -> str:
    """Return where the weights of Inception v3 are published.

    Raises:
        EnvironmentProblem: torch-fidelity is not installed.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
    except ImportError:
        raise EnvironmentProblem("it needs the package torch-fidelity: uv sync --extra metrics") from None
    return str(URL_INCEPTION_V3)


# --- distances of features -------------------------------------------------------------------------------


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Return the squared 2-Wasserstein distance of normal distributions with the sets' means and covariances.

    Heusel et al. 2017, arXiv 1706.08500. The trace of the matrix square root is taken from eigenvalues, or from
    singular values where there are fewer images than features.

    Args:
        first, second: features [images, features], two images or more each.
    """
    # A and B such that A^T A and B^T B are the covariances
    a, b = ((rows.double() - rows.double().mean(0)) / (len(rows) - 1) ** 0.5 for rows in (first, second))
    if max(len(a), len(b)) < a.shape[1]:
        trace_of_root = torch.linalg.svdvals(a @ b.T).sum()
    else:
        values, vectors = torch.linalg.eigh(a.T @ a)
        root = vectors * values.clamp_min(0).sqrt() @ vectors.T
        trace_of_root = torch.linalg.eigvalsh(root @ (b.T @ b) @ root).clamp_min(0).sqrt().sum()
    spread = a.square().sum() + b.square().sum() - 2 * trace_of_root
    return float((first.double().mean(0) - second.double().mean(0)).square().sum() + spread)


def kernel_distance(first: Tensor, second: Tensor) -> float:
    """Return MMD^2 of features [images, features] under k(x, y) = (x.y / features + 1)^3; may be slightly negative.

    Unbiased: Binkowski et al. 2018, "Demystifying MMD GANs", arXiv 1801.01401. torchmetrics and torch-fidelity average
    it over random subsets of 1,000 images; here it is taken once over all images, which estimates the same value with
    less noise.
    """
    return resampled_kernel_distances(first, second, [(np.arange(len(first)), np.arange(len(second)))])[0]


def resampled_kernel_distances(first: Tensor, second: Tensor, draws: PairDraws) -> list[float]:
    """Return the distance for each pair of resamples; an image's copies are not compared with one another."""
    first, second = first.double(), second.double()
    a, b = (
        torch.stack([torch.from_numpy(np.bincount(pair[side], minlength=len(rows))).double() for pair in draws])
        for side, rows in ((0, first), (1, second))
    )  # how often each resample has each image, [resamples, images]
    within = [_kernel_sums(rows, rows, weights, weights, within=True) for rows, weights in ((first, a), (second, b))]
    pairs = [weights.sum(1).square() - weights.square().sum(1) for weights in (a, b)]
    across = 2 * _kernel_sums(first, second, a, b) / (a.sum(1) * b.sum(1))
    distances: list[float] = (within[0] / pairs[0] + within[1] / pairs[1] - across).tolist()
    return distances


def _kernel_sums(rows: Tensor, columns: Tensor, left: Tensor, right: Tensor, within: bool = False) -> Tensor:
    """Sums over pairs, [resamples]; `within` one set without those of an image and itself."""
    total = torch.zeros(len(left), dtype=torch.float64)
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        kernel = (block @ columns.T / rows.shape[1] + 1) ** 3
        if within:
            kernel[torch.arange(len(block)), torch.arange(start, start + len(block))] = 0
        total += ((left[:, start : start + BLOCK] @ kernel) * right).sum(1)
    return total


def precision(real: Tensor, samples: Tensor) -> Tensor:
    """Return whether each sample is inside the manifold of the real images: bool [samples].

    Kynkäänniemi et al. 2019, arXiv 1904.06991: a set's manifold is the union of balls around its features, each as
    large as the distance to the k-th nearest other one. Recall is `precision(samples, real)`.

    Args:
        real, samples: features [images, features]; more than NEIGHBORS real ones.
    """
    if len(real) <= NEIGHBORS:
        raise ValueError(f"{len(real)} images have no {NEIGHBORS} neighbors each")
    real, samples = real.double(), samples.double()
    radii = torch.cat(  # the nearest one is the feature itself
        [torch.cdist(block, real).kthvalue(NEIGHBORS + 1, dim=1).values for block in real.split(BLOCK)]
    )
    return torch.cat([(torch.cdist(block, real) <= radii).any(1) for block in samples.split(BLOCK)])


# --- sliced Wasserstein distance of patches --------------------------------------------------------------
# Of Laplacian-pyramid patches: Karras et al. 2018, arXiv 1710.10196, section 5. It needs no network: it compares two
# sets of images by their 7 x 7 neighborhoods at each scale. Small means alike in looks and variation. The constants are
# the paper's, but for the number of images, which is what there is; values of different numbers of images, or image
# sizes, are not comparable.


def patch_distances(first: Tensor, second: Tensor, seed: int = 0) -> dict[str, float]:
    """Return the distance at each level, named by its pixels, and their `mean`; in thousandths.

    Args:
        first, second: float [n, channels, size, size], as many of each; `size` a power of two, at least 16.
        seed: decides the patches, which both sets give at the same positions, and the directions.
    """
    if first.shape != second.shape:
        raise ValueError(f"the sets differ in shape: {list(first.shape)} and {list(second.shape)}")
    distances = {}
    for size, patches, generator in _patch_levels(first, second, seed):
        gaps = [_wasserstein(*_project(patches, DIRECTIONS, generator)) for _ in range(DIRECTION_BATCHES)]
        distances[str(size)] = PER_THOUSAND * float(np.mean(gaps))
    return {**distances, "mean": float(np.mean(list(distances.values())))}


def resampled_patch_distances(first: Tensor, second: Tensor, draws: PairDraws, seed: int = 0) -> list[float]:
    """Return the `mean` of `patch_distances`, along fewer directions, for each pair of resamples of the images."""
    levels = [
        [rows.reshape(SPREAD_DIRECTIONS, len(first), -1) for rows in _project(patches, SPREAD_DIRECTIONS, generator)]
        for _, patches, generator in _patch_levels(first, second, seed)
    ]
    return [float(np.mean([PER_THOUSAND * _wasserstein(x[:, a], y[:, b]) for x, y in levels])) for a, b in draws]


def _patch_levels(
    first: Tensor, second: Tensor, seed: int
) -> Iterator[tuple[int, tuple[Tensor, Tensor], torch.Generator]]:
    """For each level: its pixels, the descriptors of both sets, and the random numbers of its directions."""
    for a, b in zip(laplacian_pyramid(first), laplacian_pyramid(second), strict=True):
        size = a.shape[-1]
        patches = patch_descriptors(a, seed + size), patch_descriptors(b, seed + size)
        yield size, patches, torch.Generator().manual_seed(seed + size)


def _project(
    patches: tuple[Tensor, Tensor], directions: int, generator: torch.Generator
) -> list[npt.NDArray[np.float32]]:
    """Both sets' descriptors along random directions, [directions, n * 128] each."""
    vectors = F.normalize(torch.randn(patches[0].shape[1], directions, generator=generator), dim=0)
    return [(vectors.T @ rows.T).numpy() for rows in patches]


def has_pyramid(size: int) -> bool:
    """Return whether images of this side can be compared by their patches."""
    return size >= SMALLEST_LEVEL and size & (size - 1) == 0


def laplacian_pyramid(images: Tensor) -> list[Tensor]:
    """Build the Laplacian pyramid (Burt & Adelson 1983), finest first; the last level is the low-pass image left."""
    size = images.shape[-1]
    if not has_pyramid(size):
        raise ValueError(f"images of {size} pixels: the pyramid needs a power of two, {SMALLEST_LEVEL} or more")
    levels = [images.float()]
    while levels[-1].shape[-1] > SMALLEST_LEVEL:
        smaller = _blur(levels[-1])[..., ::2, ::2]
        count, channels, height, width = smaller.shape
        spread = smaller.new_zeros(count, channels, 2 * height, 2 * width)
        spread[..., ::2, ::2] = smaller
        levels[-1] = levels[-1] - _blur(spread, gain=4.0)
        levels.append(smaller)
    return levels


def patch_descriptors(level: Tensor, seed: int) -> Tensor:
    """Take random patches of one level, each channel normalized over the set: [n * 128, channels * 49]."""
    count, _, size, _ = level.shape
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(size - PATCH + 1, (2, count, PATCHES_PER_IMAGE), generator=generator)
    windows = level.unfold(2, PATCH, 1).unfold(3, PATCH, 1)  # [n, c, rows, columns, 7, 7], a view
    image = torch.arange(count)[:, None].expand(-1, PATCHES_PER_IMAGE)
    patches = windows[image, :, corners[0], corners[1]].flatten(0, 1)  # [n * 128, c, 7, 7]
    deviation, mean = torch.std_mean(patches, dim=(0, 2, 3), keepdim=True)
    return ((patches - mean) / deviation.clamp_min(1e-8)).flatten(1)


def _wasserstein(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> float:
    """Mean distance of the sorted numbers of each row: [rows, ...] both."""
    a, b = (np.sort(rows.reshape(len(rows), -1), axis=1) for rows in (first, second))
    return float(np.abs(a - b).mean())


def _blur(images: Tensor, gain: float = 1.0) -> Tensor:
    channels = images.shape[1]
    kernel = (gain * _KERNEL).expand(channels, 1, -1, -1)
    return F.conv2d(F.pad(images, (2, 2, 2, 2), mode="reflect"), kernel, groups=channels)
