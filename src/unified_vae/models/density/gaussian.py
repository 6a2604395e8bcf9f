"""A Gaussian with the mean and covariance of the aggregated posterior q(z) = mean over images of q(z|x).

The covariance of q(z) is that of the posteriors' means plus the mean of their variances. The second part is
known exactly and keeps the whole from being singular, however few the images; how far the first part's correlations are
shrunk beside that is decided by likelihood on images that were kept out. (The estimators of Ledoit & Wolf 2004
and of Schaefer & Strimmer 2005 minimise a squared error of the covariance, which weighs the narrow directions little:
with 100 images they cost 30 nats or more here, docs/sampling.md.)
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from unified_vae.config.model import DensityKind
from unified_vae.core.posterior import DiagonalGaussian
from unified_vae.models.density.base import LatentDensity, Rows, row_normals, standard_log_prob

SHRINKAGES = (0.0, 0.003, 0.03, 0.1, 0.3, 1.0)
PARTS = 5  # of the images, each kept out once
MANY = 1000  # images, from which on keeping out one part is enough
JITTER = 1e-6  # of each unit's variance: what rounding may have made negative


class GaussianDensity(LatentDensity):
    """N(mean, from_standard from_standard^T).

    Its standard coordinates w = to_standard (z - mean), in which it is N(0, I), are ordered by how much of their
    variance is between images, the rest being the posteriors' own noise. The densities built on it bend the first.

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

    def standard(self, latents: Tensor) -> Tensor:
        """Latents [n, latents] in standard coordinates."""
        return (latents - self.mean) @ self.to_standard.T

    def draw(self, rows: Rows) -> Tensor:
        """See `LatentDensity.draw`."""
        return self.mean + self.draw_standard(rows) @ self.from_standard.T

    def log_prob(self, latents: Tensor) -> Tensor:
        """See `LatentDensity.log_prob`."""
        volume = torch.linalg.slogdet(self.to_standard.double()).logabsdet
        return self.log_prob_standard(self.standard(latents)) + volume.float()

    def draw_standard(self, rows: Rows) -> Tensor:
        """Draws [n, latents] in standard coordinates."""
        return row_normals(rows, self.latents).to(self.mean)

    def log_prob_standard(self, values: Tensor) -> Tensor:
        """log density of values [n, latents] in standard coordinates: [n]."""
        return standard_log_prob(values)

    def describe(self) -> str:
        """See `LatentDensity.describe`."""
        return "a Gaussian with full covariance"

    def take(self, gaussian: GaussianDensity) -> None:
        """Stand on the coordinates of `gaussian`."""
        for name in ("mean", "to_standard", "from_standard"):
            getattr(self, name).copy_(getattr(gaussian, name))


def fit_gaussian(posteriors: DiagonalGaussian, views: int = 1) -> GaussianDensity:
    """The Gaussian of the posteriors of a set of images, any number from 1 on.

    Args:
        views: of each image, all images' first ones before all their second ones.

    Raises:
        ArithmeticError: the posteriors are not finite.
    """
    refuse_not_finite(posteriors)
    return _of(posteriors, best_shrinkage(posteriors, views))


def best_shrinkage(posteriors: DiagonalGaussian, views: int = 1) -> float:
    """The member of SHRINKAGES under which images that were kept out are likeliest; 1 for a single image."""
    count = len(posteriors.mean) // views
    parts = min(PARTS, count)
    if parts < 2:
        return 1.0
    gains = torch.zeros(len(SHRINKAGES), dtype=torch.float64)
    for part in range(1 if count >= MANY else parts):
        out = (torch.arange(count) % parts == part).repeat(views)
        moments, kept_out = _moments(some(posteriors, ~out)), some(posteriors, out)
        gains += torch.tensor([_log_likelihood(moments, kept_out, share) for share in SHRINKAGES]).double()
    return SHRINKAGES[int(gains.argmax())]


def refuse_not_finite(posteriors: DiagonalGaussian) -> None:
    """Raise ArithmeticError where the encoder gave NaN or infinity."""
    if not bool(torch.isfinite(posteriors.mean).all() and torch.isfinite(posteriors.logvar).all()):
        raise ArithmeticError("the encoder gives latents that are not finite numbers")


Moments = tuple[Tensor, Tensor, Tensor]
"""Mean [latents], covariance [latents, latents] of the posteriors' means, mean of their variances [latents]."""


def _moments(posteriors: DiagonalGaussian) -> Moments:
    means = posteriors.mean.double()
    centre = means.mean(0)
    away = means - centre
    return centre, away.T @ away / max(len(means) - 1, 1), posteriors.logvar.double().exp().mean(0)


def _covariances(moments: Moments, shrinkage: float) -> tuple[Tensor, Tensor]:
    """Covariance of the means, shrunk towards its diagonal, and of the whole, each [latents, latents]."""
    _, covariance, noise = moments
    own = covariance.diagonal()
    between = (1 - shrinkage) * covariance + shrinkage * torch.diag(own)
    return between, between + torch.diag(noise + JITTER * (own + noise))


def _log_likelihood(moments: Moments, posteriors: DiagonalGaussian, shrinkage: float) -> float:
    """Mean over the posteriors of E log N(z; mean, covariance), without constants, in nats."""
    centre = moments[0]
    whole = _covariances(moments, shrinkage)[1]
    away = posteriors.mean.double() - centre
    scatter = away.T @ away / len(away) + torch.diag(posteriors.logvar.double().exp().mean(0))
    scale = whole.diagonal().sqrt()
    factor = torch.linalg.cholesky(whole / torch.outer(scale, scale))
    spread = torch.cholesky_solve(scatter / torch.outer(scale, scale), factor).diagonal().sum()
    return -0.5 * float(spread) - float(factor.diagonal().log().sum() + scale.log().sum())


def _of(posteriors: DiagonalGaussian, shrinkage: float) -> GaussianDensity:
    """In float64, and in units of each latent's own deviation, so that very unequal units stay apart from rounding."""
    moments = _moments(posteriors)
    between, whole = _covariances(moments, shrinkage)
    scale = whole.diagonal().sqrt()
    factor = torch.linalg.cholesky(whole / torch.outer(scale, scale))
    inverse = torch.linalg.inv(factor)
    signal = torch.linalg.eigh(inverse @ (between / torch.outer(scale, scale)) @ inverse.T)
    turn = signal.eigenvectors.flip(1)  # by descending share of what differs between images
    density = GaussianDensity(len(scale))
    density.mean.copy_(moments[0])
    density.to_standard.copy_(turn.T @ inverse / scale)
    density.from_standard.copy_(scale[:, None] * (factor @ turn))
    return density


def some(posteriors: DiagonalGaussian, which: Tensor) -> DiagonalGaussian:
    """Those at the positions `which`, or where it is true."""
    return DiagonalGaussian(posteriors.mean[which], posteriors.logvar[which])
