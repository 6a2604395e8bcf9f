"""Fit a latent density to the posteriors of training images, and choose its kind by images that were kept out.

Sampling from N(0, I) assumes that the aggregated posterior q(z) = mean over images of q(z|x) is N(0, I). It is not
(Hoffman & Johnson 2016; Rezende & Viola 2018, arXiv 1810.00597), and the more nats the latents hold, the less. A
density fitted to q(z) afterwards leaves the model as it is (Dai & Wipf 2019, arXiv 1903.05789; Ghosh et al. 2020,
arXiv 1903.12436). Every kind here has an exact likelihood, so that they can be compared on draws from the posteriors
of images that none of them was fitted to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from unified_vae.config.model import DensityConfig, DensityKind
from unified_vae.core.errors import DataError
from unified_vae.core.posterior import MOST_CORRELATED, DiagonalGaussian
from unified_vae.models.density.base import LatentDensity
from unified_vae.models.density.flow import SMALLEST
from unified_vae.models.density.gaussian import GaussianDensity, fit_gaussian, refuse_not_finite, some
from unified_vae.models.density.mixture import MixtureDensity, fit_mixture
from unified_vae.models.density.normal import NormalDensity
from unified_vae.models.density.units import fit_units
from unified_vae.training.density_judge import Judge, generator
from unified_vae.training.flow_training import train_flow

KINDS: tuple[DensityKind, ...] = ("normal", "gaussian", "mixture", "flow")  # from the simplest on
KINDS_OF_MANY: tuple[DensityKind, ...] = ("normal", "units")  # of more than MOST_CORRELATED latents
FEWEST = 10  # images to choose by
FEWEST_KEPT_OUT = 2
LARGEST_KEPT_OUT = 2000
IMAGES_PER_COMPONENT = 10
LOYALTIES = (0.5, 4.0)  # of a component to the common covariance, in images per bent coordinate

Progress = Callable[[str, int, int | None], None]
"""Called with (what, done, of how many)."""

Refit = Callable[[DiagonalGaussian], LatentDensity]


@dataclass(frozen=True)
class Candidate:
    """A density, and how likely draws from the posteriors of images that were kept out are under it.

    Attributes:
        log_likelihoods: [images kept out], nats an image.
        refit: the same kind and shape, fitted to other posteriors: in the end to all of them.
    """

    density: LatentDensity
    log_likelihoods: Tensor
    refit: Refit

    def nats(self) -> float:
        """Mean over the images."""
        return float(self.log_likelihoods.mean())

    def gain_over(self, other: Candidate) -> tuple[float, float]:
        """How much likelier than under `other`, and the standard error of that, in nats an image."""
        difference = self.log_likelihoods - other.log_likelihoods
        error = difference.std() / len(difference) ** 0.5 if len(difference) > 1 else torch.zeros(())
        return float(difference.mean()), float(error)


@dataclass(frozen=True)
class FittedDensity:
    """What came of a fit.

    Attributes:
        nats: kind -> mean log likelihood of images that were kept out; empty where none could be.
        images: how many the density was fitted to.
        note: what the user should know, a sentence, or "".
    """

    density: LatentDensity
    nats: Mapping[DensityKind, float]
    images: int
    note: str = ""


def fit_density(
    posteriors: DiagonalGaussian, config: DensityConfig, seed: int, progress: Progress | None = None, views: int = 1
) -> FittedDensity:
    """The density that `config` asks for, on the CPU.

    Args:
        posteriors: of training images, [views * n, latents].
        seed: decides the images that are kept out, draws, first centres and weights.
        views: of each image, as mirrored and not; all images' first ones before all their second ones.

    Raises:
        DataError: the kind asked for cannot be fitted to so few images or latents.
        ArithmeticError: the posteriors are not finite.
    """
    refuse_not_finite(posteriors)
    rows, latents = posteriors.mean.shape
    images = rows // views
    if config.fit == "normal":
        return FittedDensity(NormalDensity(latents), {}, 0)
    possible = kinds_for(latents)
    if config.fit not in ("auto", "units", *possible):
        raise DataError(
            f"density.fit={config.fit} looks at all pairs of latents, and {latents:,} are too many for that (at most "
            f"{MOST_CORRELATED:,}): set density.fit=auto"
        )
    if images < FEWEST:
        return _without_choice(posteriors, config, views)
    wanted = possible if config.fit == "auto" else ("normal", config.fit)
    candidates = fit_kinds(posteriors, config, seed, wanted, progress, views)
    chosen = choose(candidates) if config.fit == "auto" else config.fit
    nats = {kind: candidate.nats() for kind, candidate in candidates.items()}
    fitted_to = images - kept_out_of(images) if chosen == "flow" else images  # a flow needs some to stop by
    return FittedDensity(candidates[chosen].refit(posteriors), nats, fitted_to)


def kinds_for(latents: int) -> tuple[DensityKind, ...]:
    """The kinds that `auto` chooses from, from the simplest on."""
    return KINDS if latents <= MOST_CORRELATED else KINDS_OF_MANY


def fit_sketch(posteriors: DiagonalGaussian) -> LatentDensity:
    """The best density that a second or two can fit: full covariance up to MOST_CORRELATED latents, then none."""
    if posteriors.mean.shape[1] <= MOST_CORRELATED:
        return fit_gaussian(posteriors)
    refuse_not_finite(posteriors)
    return fit_units(posteriors)


def fit_kinds(
    posteriors: DiagonalGaussian,
    config: DensityConfig,
    seed: int,
    kinds: tuple[DensityKind, ...] = KINDS,
    progress: Progress | None = None,
    views: int = 1,
) -> dict[DensityKind, Candidate]:
    """Each kind fitted to nine tenths of the images and measured on the rest, for a choice or a comparison.

    A flow is left out of several kinds where the latents are too few for one.

    Raises:
        DataError: a flow is the only kind asked for beside `normal`, and there are too few latents.
    """
    fitted_to, kept_out = _split(posteriors, seed, views)
    latents = posteriors.mean.shape[1]
    if "flow" in kinds and latents < SMALLEST:
        if set(kinds) <= {"normal", "flow"}:
            raise DataError(f"a flow needs {SMALLEST} latents, and this model has {latents}: set density.fit=mixture.")
        kinds = tuple(kind for kind in kinds if kind != "flow")
    judge = Judge(kept_out, seed, views)
    bench = _Bench(fitted_to, views, judge, config, seed)
    candidates: dict[DensityKind, Candidate] = {}
    for number, kind in enumerate(kinds):
        if progress:
            progress(f"fitting a latent density: {kind}", number, len(kinds))
        density, refit = bench.fit(kind)
        candidates[kind] = Candidate(density, judge.log_likelihoods(density), refit)
    if progress:
        progress("latent densities fitted", len(kinds), len(kinds))
    return candidates


def choose(candidates: Mapping[DensityKind, Candidate]) -> DensityKind:
    """The likeliest kind; a less simple one has to be likelier by more than the standard error of its gain.

    (The rule of one standard error: Breiman, Friedman, Olshen, Stone 1984, Classification and Regression Trees, 3.4.3.)
    """
    best: DensityKind = "normal"
    for kind in candidates:
        if kind != best:
            gain, error = candidates[kind].gain_over(candidates[best])
            best = kind if gain > error else best
    return best


def _without_choice(posteriors: DiagonalGaussian, config: DensityConfig, views: int) -> FittedDensity:
    rows, latents = posteriors.mean.shape
    images = rows // views
    if config.fit == "flow":
        raise DataError(
            f"a flow needs {FEWEST} training images, to keep some out, and there are {images}: "
            "set density.fit=gaussian."
        )
    if config.fit == "auto":
        note = (
            f"{images} training images are too few to choose a latent density by ({FEWEST} are needed), so new "
            "pictures are sampled from N(0, I)"
        )
        return FittedDensity(NormalDensity(latents), {}, 0, note)
    if config.fit == "units":
        return FittedDensity(fit_units(posteriors), {}, images)
    note = f"{images} training images give a Gaussian whose samples are mixes of these"
    return FittedDensity(fit_gaussian(posteriors, views), {}, images, note)


def kept_out_of(images: int) -> int:
    """How many images kinds are chosen by."""
    return min(max(images // 10, FEWEST_KEPT_OUT), LARGEST_KEPT_OUT)


def _split(posteriors: DiagonalGaussian, seed: int, views: int) -> tuple[DiagonalGaussian, DiagonalGaussian]:
    """Nine tenths of the images to fit to, and the rest, each with all its views."""
    count = len(posteriors.mean) // views
    order = torch.randperm(count, generator=generator(seed, "split"))
    out = kept_out_of(count)
    first = torch.arange(views)[:, None] * count
    return some(posteriors, (first + order[out:]).flatten()), some(posteriors, (first + order[:out]).flatten())


@dataclass(frozen=True)
class _Bench:
    """Where kinds are fitted to the same images and judged by the same others; what several need is fitted once."""

    fitted_to: DiagonalGaussian
    views: int
    judge: Judge
    config: DensityConfig
    seed: int

    def fit(self, kind: DensityKind) -> tuple[LatentDensity, Refit]:
        match kind:
            case "normal":
                normal = NormalDensity(self.fitted_to.mean.shape[1])
                return normal, lambda _: normal
            case "units":
                return fit_units(self.fitted_to), fit_units
            case "gaussian":
                return self._gaussian, partial(fit_gaussian, views=self.views)
            case "mixture":
                return self._mixture
            case "flow":
                base = max(self._gaussian, self._mixture[0], key=lambda d: float(self.judge.log_likelihoods(d).mean()))
                flow = train_flow(base, self.fitted_to, self.judge, self.config.flow_steps, self.seed)
                return flow, lambda _: flow  # it needs images kept out to stop by

    @cached_property
    def _gaussian(self) -> GaussianDensity:
        return fit_gaussian(self.fitted_to, self.views)

    @cached_property
    def _mixture(self) -> tuple[MixtureDensity, Refit]:
        """Twice as many components as long as that helps, each more or less loyal to the common covariance."""
        largest = max(min(self.config.max_components, len(self.fitted_to.mean) // IMAGES_PER_COMPONENT), 1)
        best_nats, best = -math.inf, None
        count = min(2, largest)
        while count <= largest:
            nats, density, refit = max((self._of(count, loyalty) for loyalty in LOYALTIES), key=lambda entry: entry[0])
            if nats <= best_nats:
                break
            best_nats, best = nats, (density, refit)
            count *= 2
        assert best is not None
        return best

    def _of(self, count: int, loyalty: float) -> tuple[float, MixtureDensity, Refit]:
        """Nats of images that were kept out, the mixture, and how to fit it to others."""
        purpose = f"mixture of {count}"
        density = fit_mixture(self._gaussian, self.fitted_to, count, loyalty, generator(self.seed, purpose))

        def refit(posteriors: DiagonalGaussian) -> LatentDensity:
            gaussian = fit_gaussian(posteriors, self.views)
            return fit_mixture(gaussian, posteriors, count, loyalty, generator(self.seed, purpose))

        return float(self.judge.log_likelihoods(density).mean()), density, refit
