"""A mixture of Gaussians, as Ghosh et al. 2020 (arXiv 1903.12436) fit one to the latents of finished autoencoders.

It is fitted in the standard coordinates of the Gaussian of the same latents, and bends only the first of them, which
differ most between images; the others stay N(0, 1). A component's covariance is its own as far as it has images to tell
it, and the components' common one beyond that: the most likely covariance under an inverse Wishart prior around
the common one (Gelman et al., Bayesian Data Analysis, section 3.6).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from unified_vae.config.model import DensityKind
from unified_vae.core.posterior import DiagonalGaussian
from unified_vae.models.density.base import Rows, row_normals, row_uniforms, standard_log_prob
from unified_vae.models.density.gaussian import GaussianDensity

BENT = 128  # standard coordinates that the components may differ in
BENT_BEFORE = 64  # in files that do not say it
ROUNDS = 25  # of expectation and maximisation
ENOUGH = 1e-3  # nats an image that a round has to bring
VALUES = 8192  # draws from the posteriors, where there are fewer images than that
COMMON_RIDGE = 0.02  # weight of N(0, I) in the common covariance
UNHEARD = 1e-6  # share of a value in a component below which it adds nothing to its covariance


@dataclass(frozen=True)
class Components:
    """Gaussians in the bent coordinates.

    Attributes:
        weights: [components], sums to 1.
        centres: [components, bent].
        factors: [components, bent, bent], lower triangular, of the covariances.
    """

    weights: Tensor
    centres: Tensor
    factors: Tensor

    def log_prob(self, values: Tensor) -> Tensor:
        """log of weight times density of each component at values [n, bent]: [n, components]."""
        identity = torch.eye(values.shape[1], dtype=values.dtype, device=values.device)
        inverses = torch.linalg.solve_triangular(self.factors, identity.expand_as(self.factors), upper=False)
        constants = self.weights.log() - self.factors.diagonal(dim1=1, dim2=2).log().sum(1)
        found = [
            standard_log_prob((values - centre) @ inverse.T) + constant
            for centre, inverse, constant in zip(self.centres, inverses, constants, strict=True)
        ]
        return torch.stack(found, dim=1)


class MixtureDensity(GaussianDensity):
    """A Gaussian whose first standard coordinates are a mixture instead of N(0, I)."""

    kind: ClassVar[DensityKind] = "mixture"
    OWN: ClassVar[tuple[str, ...]] = ("weights", "centres", "factors")  # tensors beside the Gaussian's
    weights: Tensor
    centres: Tensor
    factors: Tensor

    def __init__(self, latents: int, components: int, bent: int = BENT_BEFORE) -> None:
        super().__init__(latents)
        bent = min(latents, bent)
        self.register_buffer("weights", torch.full((components,), 1 / components))
        self.register_buffer("centres", torch.zeros(components, bent))
        self.register_buffer("factors", torch.eye(bent).repeat(components, 1, 1))

    @classmethod
    def around(cls, gaussian: GaussianDensity, components: Components) -> MixtureDensity:
        """The components, in the standard coordinates of `gaussian`."""
        density = cls(gaussian.latents, *components.centres.shape)
        density.take(gaussian)
        for name in cls.OWN:
            getattr(density, name).copy_(getattr(components, name))
        return density

    def draw_standard(self, rows: Rows) -> Tensor:
        """See `GaussianDensity.draw_standard`."""
        values = row_normals(rows, self.latents)
        bounds = self.weights.double().cumsum(0).cpu().numpy()
        chosen = np.searchsorted(bounds[:-1], row_uniforms(rows, "component", 1)[:, 0])
        values = values.to(self.mean)
        bent = self.centres.shape[1]
        for component in np.unique(chosen):
            own = torch.from_numpy(chosen == component).to(values.device)
            values[own, :bent] = self.centres[component] + values[own, :bent] @ self.factors[component].T
        return values

    def log_prob_standard(self, values: Tensor) -> Tensor:
        """See `GaussianDensity.log_prob_standard`."""
        bent = self.centres.shape[1]
        components = Components(self.weights, self.centres, self.factors)
        return torch.logsumexp(components.log_prob(values[:, :bent]), dim=1) + standard_log_prob(values[:, bent:])

    def sizes(self) -> dict[str, int]:
        """See `LatentDensity.sizes`."""
        return dict(zip(("components", "bent"), self.centres.shape, strict=True))

    def describe(self) -> str:
        """See `LatentDensity.describe`."""
        return f"a mixture of {len(self.weights)} Gaussian{'s' if len(self.weights) > 1 else ''}"


def fit_mixture(
    gaussian: GaussianDensity, posteriors: DiagonalGaussian, count: int, loyalty: float, generator: torch.Generator
) -> MixtureDensity:
    """Fit `count` components to draws from the posteriors, in the standard coordinates of `gaussian`.

    Args:
        loyalty: images per bent coordinate that the common covariance counts for in each component's own.
        generator: decides the draws and the first centres.
    """
    draws = max(VALUES // len(posteriors.mean), 1)
    values = torch.cat([gaussian.standard(draw(posteriors, generator))[:, :BENT] for _ in range(draws)])
    components = fit_components(values, count, loyalty * values.shape[1], draws, generator)
    return MixtureDensity.around(gaussian, components)


def draw(posteriors: DiagonalGaussian, generator: torch.Generator) -> Tensor:
    """One draw from each posterior, [n, latents]."""
    return posteriors.sample(torch.randn(posteriors.mean.shape, generator=generator))


def fit_components(values: Tensor, count: int, loyalty: float, draws: int, generator: torch.Generator) -> Components:
    """Expectation and maximisation (Dempster et al. 1977), from centres spread as in k-means++.

    Args:
        values: [n, bent].
        loyalty: images that the common covariance counts for in each component's own.
        draws: values of each image, so that n / draws images speak.
    """
    centres = _spread_centres(values, count, generator)
    shares = torch.nn.functional.one_hot(torch.cdist(values, centres).argmin(1), count).to(values)
    before = -math.inf
    for _ in range(ROUNDS):
        components = _maximise(values, shares, loyalty, draws)
        joint = components.log_prob(values)
        total = torch.logsumexp(joint, dim=1)
        shares = torch.exp(joint - total[:, None])
        if float(total.mean()) - before < ENOUGH:
            break
        before = float(total.mean())
    return components


def _maximise(values: Tensor, shares: Tensor, loyalty: float, draws: int) -> Components:
    """The likeliest components, given each value's shares [n, components] in them."""
    heard = shares.sum(0)
    centres = (shares.T @ values) / heard.clamp_min(1e-6)[:, None]
    scatters = torch.stack([_scatter(values, c, share) for c, share in zip(centres, shares.T, strict=True)])
    images, scatters = heard / draws, scatters / draws
    identity = torch.eye(values.shape[1]).to(values)
    common = (scatters.sum(0) / images.sum() + COMMON_RIDGE * identity) / (1 + COMMON_RIDGE)
    covariances = (scatters + loyalty * common) / (images + loyalty)[:, None, None]
    weights = (images + 1) / (images.sum() + len(images))
    return Components(weights, centres, torch.linalg.cholesky(covariances))


def _scatter(values: Tensor, centre: Tensor, share: Tensor) -> Tensor:
    """Sum of share times away away^T: [bent, bent]. In many coordinates most values have no share in most."""
    heard = share > UNHEARD
    away = values[heard] - centre
    return away.T @ (away * share[heard, None])


def _spread_centres(values: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Values far from one another (k-means++; Arthur & Vassilvitskii 2007): [count, bent]."""
    first = torch.randint(len(values), (1,), generator=generator)
    centres = values[first]
    nearest = (values - centres[0]).square().sum(1)
    for _ in range(count - 1):
        chances = nearest.double().cumsum(0)
        place = torch.rand(1, generator=generator, dtype=torch.float64) * chances[-1]
        chosen = torch.searchsorted(chances, place).clamp_max(len(values) - 1)
        centres = torch.cat([centres, values[chosen]])
        nearest = torch.minimum(nearest, (values - values[chosen]).square().sum(1))
    return centres
