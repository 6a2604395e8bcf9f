"""Latent densities: what new images are sampled from, fitted to latents after training and stored with the model.

Draws are functions of the generator's state and the draw's number alone: the same on every device, in batches of any
size. Every kind has an exact likelihood, so that they can be compared on held-out latents (analysis/density.py).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import Tensor, nn

from unified_vae.config.model import DensityKind
from unified_vae.core.checkpoint_format import write_tensors
from unified_vae.core.distributions import MOST_CORRELATED, DiagonalGaussian
from unified_vae.core.rng import key, uniforms

FILE_NAME = "density.safetensors"
Rows = npt.NDArray[np.int64]
"""[n], a random number for each draw, from which all randomness of that draw follows."""

MIN_UNIFORM = 2.0**-54  # half a step of `uniforms`, so that 0 has a finite quantile
MIN_VARIANCE = 1e-12
SHRINKAGES = (0.0, 0.003, 0.03, 0.1, 0.3, 1.0)
FOLDS = 5  # of the images, each held out once
SINGLE_FOLD_IMAGES = 1000  # from which on holding out one fold is enough
JITTER = 1e-6  # of each unit's variance: what rounding may have made negative
MODELLED_DIMS = 128  # standard coordinates that the components of a mixture may differ in
LEGACY_MODELLED_DIMS = 64  # in files that do not say it
EM_STEPS = 25
MIN_GAIN = 1e-3  # nats per image that a step of EM has to bring
MIN_VALUES = 8192  # draws from the posteriors, where there are fewer images than that
COMMON_RIDGE = 0.02  # weight of N(0, I) in the common covariance
MIN_RESPONSIBILITY = 1e-6  # of a component for a value, below which it adds nothing to its covariance


class LatentDensity(nn.Module, ABC):
    """A density of latents z, [latents].

    Attributes:
        kind: its name in the model's config.
        latents: number of latent units.
        mean: [latents], what temperature 0 gives.
    """

    kind: ClassVar[DensityKind]
    mean: Tensor

    def __init__(self, latents: int) -> None:
        super().__init__()
        self.latents = latents
        self.register_buffer("mean", torch.zeros(latents))

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
        """Draw latents [count, latents], float32, on the density's device.

        Args:
            temperature: multiplies each draw's distance from the mean; below 1 draws are more typical and less varied.

        Raises:
            ValueError: `temperature` is negative, NaN or infinite.
        """
        if not 0 <= temperature < math.inf:
            raise ValueError(f"the temperature is {temperature}: give a number from 0 on, 1 for the density as it is")
        numbers = torch.randint(2**63 - 1, (count,), generator=generator, device=generator.device)
        return self.mean + temperature * (self.draw(numbers.cpu().numpy()) - self.mean)

    @abstractmethod
    def draw(self, rows: Rows) -> Tensor:
        """Draw latents [n, latents], one for each row number."""

    @abstractmethod
    def log_prob(self, latents: Tensor) -> Tensor:
        """Return the natural logarithm of the density at latents [n, latents]: [n]."""

    @abstractmethod
    def describe(self) -> str:
        """Return a description, e.g. `a mixture of 8 Gaussians`."""

    def sizes(self) -> dict[str, int]:
        """Return the arguments beside `latents` that build a density of this shape."""
        return {}


class NormalDensity(LatentDensity):
    """N(0, I): the prior of the VAE, and what is sampled from where nothing was fitted."""

    kind: ClassVar[DensityKind] = "normal"

    def draw(self, rows: Rows) -> Tensor:
        return row_normals(rows, self.latents).to(self.mean)

    def log_prob(self, latents: Tensor) -> Tensor:
        return standard_log_prob(latents)

    def describe(self) -> str:
        return "N(0, I)"


class UnitsDensity(LatentDensity):
    """N(mean, diag(std^2)): independent units, for latents that are too many for a covariance.

    Draws have the right spread in each unit and none of the agreement between neighbors. A map of thousands of latents
    is sampled well only by a model of such maps, which is what latent diffusion trains.

    Attributes:
        std: [latents].
    """

    kind: ClassVar[DensityKind] = "units"
    std: Tensor

    def __init__(self, latents: int) -> None:
        super().__init__(latents)
        self.register_buffer("std", torch.ones(latents))

    def draw(self, rows: Rows) -> Tensor:
        return self.mean + self.std * row_normals(rows, self.latents).to(self.mean)

    def log_prob(self, latents: Tensor) -> Tensor:
        return standard_log_prob((latents - self.mean) / self.std) - self.std.log().sum()

    def describe(self) -> str:
        return "a Gaussian without correlations"


class GaussianDensity(LatentDensity):
    """N(mean, from_standard from_standard^T).

    Its standard coordinates w = to_standard (z - mean), in which it is N(0, I), are ordered by how much of their
    variance is between images, the rest being the posteriors' own noise. A mixture models the first of them.

    Attributes:
        to_standard: [latents, latents].
        from_standard: [latents, latents], its inverse.
    """

    kind: ClassVar[DensityKind] = "gaussian"
    to_standard: Tensor
    from_standard: Tensor

    def __init__(self, latents: int) -> None:
        super().__init__(latents)
        self.register_buffer("to_standard", torch.eye(latents))
        self.register_buffer("from_standard", torch.eye(latents))

    def standardize(self, latents: Tensor) -> Tensor:
        """Return latents [n, latents] in standard coordinates."""
        return (latents - self.mean) @ self.to_standard.T

    def draw(self, rows: Rows) -> Tensor:
        return self.mean + self.draw_standard(rows) @ self.from_standard.T

    def log_prob(self, latents: Tensor) -> Tensor:
        volume = torch.linalg.slogdet(self.to_standard.double()).logabsdet
        return self.log_prob_standard(self.standardize(latents)) + volume.float()

    def draw_standard(self, rows: Rows) -> Tensor:
        """Draw values [n, latents] in standard coordinates."""
        return row_normals(rows, self.latents).to(self.mean)

    def log_prob_standard(self, values: Tensor) -> Tensor:
        """Return the log density of values [n, latents] in standard coordinates: [n]."""
        return standard_log_prob(values)

    def describe(self) -> str:
        return "a Gaussian with full covariance"


class MixtureDensity(GaussianDensity):
    """A Gaussian whose first standard coordinates are a mixture of Gaussians instead of N(0, I).

    (Ghosh et al. 2020, arXiv 1903.12436, fit mixtures to the latents of finished autoencoders.)

    Attributes:
        weights: [components], sums to 1.
        centers: [components, modelled_dims].
        factors: [components, modelled_dims, modelled_dims], lower triangular, of the covariances.
    """

    kind: ClassVar[DensityKind] = "mixture"
    weights: Tensor
    centers: Tensor
    factors: Tensor

    def __init__(self, latents: int, components: int, modelled_dims: int = LEGACY_MODELLED_DIMS) -> None:
        super().__init__(latents)
        dims = min(latents, modelled_dims)
        self.register_buffer("weights", torch.full((components,), 1 / components))
        self.register_buffer("centers", torch.zeros(components, dims))
        self.register_buffer("factors", torch.eye(dims).repeat(components, 1, 1))

    def draw_standard(self, rows: Rows) -> Tensor:
        bounds = self.weights.double().cumsum(0).cpu().numpy()
        chosen = np.searchsorted(bounds[:-1], row_uniforms(rows, "component", 1)[:, 0])
        values = super().draw_standard(rows)
        dims = self.centers.shape[1]
        for component in np.unique(chosen):
            members = torch.from_numpy(chosen == component).to(values.device)
            values[members, :dims] = self.centers[component] + values[members, :dims] @ self.factors[component].T
        return values

    def log_prob_standard(self, values: Tensor) -> Tensor:
        dims = self.centers.shape[1]
        return torch.logsumexp(self.log_joint(values[:, :dims]), dim=1) + standard_log_prob(values[:, dims:])

    def log_joint(self, values: Tensor) -> Tensor:
        """Return log of weight times density of each component at values [n, modelled_dims]: [n, components]."""
        identity = torch.eye(values.shape[1], dtype=values.dtype, device=values.device)
        inverses = torch.linalg.solve_triangular(self.factors, identity.expand_as(self.factors), upper=False)
        constants = self.weights.log() - self.factors.diagonal(dim1=1, dim2=2).log().sum(1)
        joint = [
            standard_log_prob((values - center) @ inverse.T) + constant
            for center, inverse, constant in zip(self.centers, inverses, constants, strict=True)
        ]
        return torch.stack(joint, dim=1)

    def sizes(self) -> dict[str, int]:
        return dict(zip(("components", "modelled_dims"), self.centers.shape, strict=True))

    def describe(self) -> str:
        return f"a mixture of {len(self.weights)} Gaussian{'s' if len(self.weights) > 1 else ''}"


# --- randomness of draws ---------------------------------------------------------------------------------


def row_uniforms(rows: Rows, purpose: str, columns: int) -> npt.NDArray[np.float64]:
    """Return uniform numbers in (0, 1), [n, columns]; `purpose` keeps the uses of a row apart."""
    return np.maximum(uniforms(key("latent density", purpose), rows, columns), MIN_UNIFORM)


def row_normals(rows: Rows, columns: int) -> Tensor:
    """Return standard normal numbers, float32 [n, columns]."""
    return torch.special.ndtri(torch.from_numpy(row_uniforms(rows, "normal", columns))).float()


def standard_log_prob(values: Tensor) -> Tensor:
    """Return log N(values; 0, I), [n] of [n, dimensions]."""
    return -0.5 * (values.square().sum(1) + values.shape[1] * math.log(2 * math.pi))


def sample_posteriors(posteriors: DiagonalGaussian, generator: torch.Generator) -> Tensor:
    """Draw once from each posterior, [n, latents]."""
    return posteriors.sample(torch.randn(posteriors.mean.shape, generator=generator))


def subset(posteriors: DiagonalGaussian, index: Tensor) -> DiagonalGaussian:
    """Return the posteriors at positions, or where a mask is true."""
    return DiagonalGaussian(posteriors.mean[index], posteriors.logvar[index])


# --- fitting ---------------------------------------------------------------------------------------------


def check_finite(posteriors: DiagonalGaussian) -> None:
    """Raise ArithmeticError where the encoder gave NaN/Inf."""
    if not bool(torch.isfinite(posteriors.mean).all() and torch.isfinite(posteriors.logvar).all()):
        raise ArithmeticError("the encoder gives latents with NaN/Inf")


def fit_simple(posteriors: DiagonalGaussian) -> LatentDensity:
    """Fit the best density that takes a second or two: full covariance up to MOST_CORRELATED latents, then none."""
    if posteriors.mean.shape[1] <= MOST_CORRELATED:
        return fit_gaussian(posteriors)
    check_finite(posteriors)
    return fit_units(posteriors)


def unit_moments(posteriors: DiagonalGaussian) -> tuple[Tensor, Tensor]:
    """Return the mean of each unit of q(z), and its variance: that of the posteriors' means plus the mean of theirs.

    Both are [latents], float64.
    """
    means, variances = posteriors.mean.double(), posteriors.logvar.double().exp()
    return means.mean(0), means.var(0, unbiased=False) + variances.mean(0)


def fit_units(posteriors: DiagonalGaussian) -> UnitsDensity:
    """Fit mean and variance of each unit of q(z)."""
    mean, variance = unit_moments(posteriors)
    density = UnitsDensity(len(mean))
    density.mean.copy_(mean)
    density.std.copy_(variance.clamp_min(MIN_VARIANCE).sqrt())
    return density


def fit_gaussian(posteriors: DiagonalGaussian, views: int = 1) -> GaussianDensity:
    """Fit mean and covariance of the aggregated posterior q(z) = mean over images of q(z|x), of one image or more.

    The covariance of q(z) is that of the posteriors' means plus the mean of their variances. The second part is known
    exactly and keeps the whole from being singular, however few the images; how far the correlations of the first part
    are shrunk is decided by likelihood on held-out images. (The estimators of Ledoit & Wolf 2004 and of Schaefer &
    Strimmer 2005 minimize a squared error of the covariance, which gives the narrow directions little weight: with 100
    images they cost 30 nats or more here, docs/sampling.md.)

    Args:
        views: of each image, all images' first ones before all their second ones.

    Raises:
        ArithmeticError: the posteriors have NaN/Inf.
    """
    check_finite(posteriors)
    moments = _moments(posteriors)
    between, scale, factor = _shrink(moments, best_shrinkage(posteriors, views))
    inverse = torch.linalg.inv(factor)
    signal = torch.linalg.eigh(inverse @ (between / torch.outer(scale, scale)) @ inverse.T)
    rotation = signal.eigenvectors.flip(1)  # by descending share of what differs between images
    density = GaussianDensity(len(scale))
    density.mean.copy_(moments[0])
    density.to_standard.copy_(rotation.T @ inverse / scale)
    density.from_standard.copy_(scale[:, None] * (factor @ rotation))
    return density


def best_shrinkage(posteriors: DiagonalGaussian, views: int = 1) -> float:
    """Return the member of SHRINKAGES under which held-out images are likeliest; 1 for a single image."""
    count = len(posteriors.mean) // views
    folds = min(FOLDS, count)
    if folds < 2:
        return 1.0
    gains = torch.zeros(len(SHRINKAGES), dtype=torch.float64)
    for fold in range(1 if count >= SINGLE_FOLD_IMAGES else folds):
        out = (torch.arange(count) % folds == fold).repeat(views)
        moments, held_out = _moments(subset(posteriors, ~out)), subset(posteriors, out)
        gains += torch.tensor([_log_likelihood(moments, held_out, each) for each in SHRINKAGES]).double()
    return SHRINKAGES[int(gains.argmax())]


Moments = tuple[Tensor, Tensor, Tensor]
"""Mean [latents], covariance [latents, latents] of the posteriors' means, mean of their variances [latents]."""


def _moments(posteriors: DiagonalGaussian) -> Moments:
    means = posteriors.mean.double()
    center = means.mean(0)
    offsets = means - center
    return center, offsets.T @ offsets / max(len(means) - 1, 1), posteriors.logvar.double().exp().mean(0)


def _shrink(moments: Moments, shrinkage: float) -> tuple[Tensor, Tensor, Tensor]:
    """Shrink the covariance of the means towards its diagonal.

    Returns:
        It, [latents, latents]; and of the whole of q(z) the deviation of each latent, [latents], and the Cholesky
        factor of the correlation, in whose units rounding does not mix very unequal latents.
    """
    _, covariance, noise = moments
    variances = covariance.diagonal()
    between = (1 - shrinkage) * covariance + shrinkage * torch.diag(variances)
    whole = between + torch.diag(noise + JITTER * (variances + noise))
    scale = whole.diagonal().sqrt()
    return between, scale, torch.linalg.cholesky(whole / torch.outer(scale, scale))


def _log_likelihood(moments: Moments, posteriors: DiagonalGaussian, shrinkage: float) -> float:
    """Mean over the posteriors of E log N(z; mean, covariance), without constants, in nats."""
    _, scale, factor = _shrink(moments, shrinkage)
    offsets = posteriors.mean.double() - moments[0]
    scatter = offsets.T @ offsets / len(offsets) + torch.diag(posteriors.logvar.double().exp().mean(0))
    spread = torch.cholesky_solve(scatter / torch.outer(scale, scale), factor).diagonal().sum()
    return -0.5 * float(spread) - float(factor.diagonal().log().sum() + scale.log().sum())


def fit_mixture(
    gaussian: GaussianDensity,
    posteriors: DiagonalGaussian,
    count: int,
    covariance_prior_strength: float,
    generator: torch.Generator,
) -> MixtureDensity:
    """Fit `count` components to draws from the posteriors, in the standard coordinates of `gaussian`.

    By expectation and maximization (Dempster et al. 1977), from centers spread as in k-means++. The first standard
    coordinates, which differ most between images, are modelled; the others stay N(0, 1). A component's covariance is
    the most likely one under an inverse Wishart prior around the components' common covariance (Gelman et al., Bayesian
    Data Analysis, section 3.6): its own where it has the images to tell it, and the common one beyond that.

    Args:
        covariance_prior_strength: images per modelled coordinate that the common covariance counts for.
        generator: decides the draws and the first centers.
    """
    density = MixtureDensity(gaussian.latents, count, MODELLED_DIMS)
    density.load_state_dict(gaussian.state_dict(), strict=False)
    draws = max(MIN_VALUES // len(posteriors.mean), 1)
    values = torch.cat(
        [gaussian.standardize(sample_posteriors(posteriors, generator))[:, :MODELLED_DIMS] for _ in range(draws)]
    )
    centers = _spread_centers(values, count, generator)
    responsibilities = nn.functional.one_hot(torch.cdist(values, centers).argmin(1), count).to(values)
    previous = -math.inf
    for _ in range(EM_STEPS):
        _maximize(density, values, responsibilities, covariance_prior_strength * values.shape[1], draws)
        joint = density.log_joint(values)
        total = torch.logsumexp(joint, dim=1)
        responsibilities = torch.exp(joint - total[:, None])
        if float(total.mean()) - previous < MIN_GAIN:
            break
        previous = float(total.mean())
    density.factors = density.factors.contiguous()  # as a file has them, so that both draw the same bits
    return density


def _maximize(
    density: MixtureDensity, values: Tensor, responsibilities: Tensor, prior_images: float, draws: int
) -> None:
    """Make the components the likeliest, given responsibilities [n, components] and `draws` values of each image."""
    counts = responsibilities.sum(0)
    centers = (responsibilities.T @ values) / counts.clamp_min(1e-6)[:, None]
    scatters = []
    for center, weight in zip(centers, responsibilities.T, strict=True):
        members = weight > MIN_RESPONSIBILITY  # in many coordinates, few values belong to more than one component
        offsets = values[members] - center
        scatters.append(offsets.T @ (offsets * weight[members, None]))
    images, scatter = counts / draws, torch.stack(scatters) / draws
    identity = torch.eye(values.shape[1]).to(values)
    common = (scatter.sum(0) / images.sum() + COMMON_RIDGE * identity) / (1 + COMMON_RIDGE)
    covariances = (scatter + prior_images * common) / (images + prior_images)[:, None, None]
    density.weights = (images + 1) / (images.sum() + len(images))
    density.centers, density.factors = centers, torch.linalg.cholesky(covariances)


def _spread_centers(values: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Values far from one another (k-means++; Arthur & Vassilvitskii 2007): [count, modelled_dims]."""
    first = torch.randint(len(values), (1,), generator=generator)
    centers = values[first]
    nearest = (values - centers[0]).square().sum(1)
    for _ in range(count - 1):
        chances = nearest.double().cumsum(0)
        position = torch.rand(1, generator=generator, dtype=torch.float64) * chances[-1]
        chosen = torch.searchsorted(chances, position).clamp_max(len(values) - 1)
        centers = torch.cat([centers, values[chosen]])
        nearest = torch.minimum(nearest, (values - values[chosen]).square().sum(1))
    return centers


# --- files -----------------------------------------------------------------------------------------------

KINDS: tuple[type[LatentDensity], ...] = (NormalDensity, UnitsDensity, GaussianDensity, MixtureDensity)
FLOW_REPLACED = (
    "the latent density stored with this model is a flow, which is no longer supported, so samples are drawn from "
    "N(0, I)"
)
RENAMED_SIZES = {"bent": "modelled_dims"}
RENAMED_TENSORS = {"centres": "centers"}


def write_density(folder: Path, density: LatentDensity) -> dict[str, Any]:
    """Write the tensors beside a model; returns the entry that `read_density` needs."""
    write_tensors(folder / FILE_NAME, density.state_dict())
    return {"kind": density.kind, "latents": density.latents, "sizes": density.sizes()}


def read_density(folder: Path, entry: Mapping[str, Any]) -> LatentDensity:
    """Read the density that `write_density` wrote, on the CPU; N(0, I) for a flow (FLOW_REPLACED).

    Raises:
        KeyError, TypeError, ValueError, OSError, RuntimeError, SafetensorError: a part of it is damaged.
    """
    if entry["kind"] == "flow":
        return NormalDensity(entry["latents"])
    kinds = {kind.kind: kind for kind in KINDS}
    tensors = safetensors.torch.load((folder / FILE_NAME).read_bytes())
    sizes = {RENAMED_SIZES.get(name, name): size for name, size in entry["sizes"].items()}
    numbers = sum(tensor.numel() for tensor in tensors.values())
    if any(size > numbers for size in sizes.values()):
        raise ValueError(f"its {numbers} numbers cannot be of the sizes {sizes}")
    density = kinds[entry["kind"]](entry["latents"], **sizes)
    density.load_state_dict({RENAMED_TENSORS.get(name, name): tensor for name, tensor in tensors.items()})
    return density.eval().requires_grad_(False)
