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
from functools import partial

import torch
from torch import Tensor

from unified_vae.core.errors import DataError
from unified_vae.core.posterior import MOST_CORRELATED, DiagonalGaussian
from unified_vae.models.density.base import LatentDensity
from unified_vae.models.density.config import DensityConfig, DensityKind
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
    posteriors: DiagonalGaussian, config: DensityConfig, seed: int, progress: Progress | None = None
) -> FittedDensity:
    """The density that `config` asks for, on the CPU.

    Args:
        posteriors: of training images, [n, latents].
        seed: decides the images that are kept out, draws, first centres and weights.

    Raises:
        DataError: the kind asked for cannot be fitted to so few images or latents.
        ArithmeticError: the posteriors are not finite.
    """
    refuse_not_finite(posteriors)
    images, latents = posteriors.mean.shape
    if config.fit == "normal":
        return FittedDensity(NormalDensity(latents), {}, 0)
    possible = kinds_for(latents)
    if config.fit not in ("auto", "units", *possible):
        raise DataError(
            f"density.fit={config.fit} looks at all pairs of latents, and {latents:,} are too many for that (at most "
            f"{MOST_CORRELATED:,}): set density.fit=auto"
        )
    if images < FEWEST:
        return _without_choice(posteriors, config)
    wanted = possible if config.fit == "auto" else ("normal", config.fit)
    candidates = fit_kinds(posteriors, config, seed, wanted, progress)
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
) -> dict[DensityKind, Candidate]:
    """Each kind fitted to nine tenths of the images and measured on the rest, for a choice or a comparison.

    A flow is left out of several kinds where the latents are too few for one.

    Raises:
        DataError: a flow is the only kind asked for beside `normal`, and there are too few latents.
    """
    fitted_to, kept_out = _split(posteriors, seed)
    latents = posteriors.mean.shape[1]
    if "flow" in kinds and latents < SMALLEST:
        if set(kinds) <= {"normal", "flow"}:
            raise DataError(f"a flow needs {SMALLEST} latents, and this model has {latents}: set density.fit=mixture.")
        kinds = tuple(kind for kind in kinds if kind != "flow")
    judge = Judge(kept_out, seed)
    gaussian = fit_gaussian(fitted_to) if latents <= MOST_CORRELATED else None
    candidates: dict[DensityKind, Candidate] = {}
    for number, kind in enumerate(kinds):
        if progress:
            progress(f"fitting a latent density: {kind}", number, len(kinds))
        density, refit = _fit_kind(kind, gaussian, fitted_to, judge, config, seed)
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


def _without_choice(posteriors: DiagonalGaussian, config: DensityConfig) -> FittedDensity:
    images, latents = posteriors.mean.shape
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
    return FittedDensity(fit_gaussian(posteriors), {}, images, note)


def kept_out_of(images: int) -> int:
    """How many images kinds are chosen by."""
    return min(max(images // 10, FEWEST_KEPT_OUT), LARGEST_KEPT_OUT)


def _split(posteriors: DiagonalGaussian, seed: int) -> tuple[DiagonalGaussian, DiagonalGaussian]:
    """Nine tenths to fit to, and the rest."""
    count = len(posteriors.mean)
    order = torch.randperm(count, generator=generator(seed, "split"))
    out = kept_out_of(count)
    return some(posteriors, order[out:]), some(posteriors, order[:out])


def _fit_kind(
    kind: DensityKind,
    gaussian: GaussianDensity | None,
    fitted_to: DiagonalGaussian,
    judge: Judge,
    config: DensityConfig,
    seed: int,
) -> tuple[LatentDensity, Refit]:
    match kind:
        case "normal":
            normal = NormalDensity(fitted_to.mean.shape[1])
            return normal, lambda _: normal
        case "units":
            return fit_units(fitted_to), fit_units
    assert gaussian is not None, "there are too many latents for this kind"
    match kind:
        case "gaussian":
            return gaussian, fit_gaussian
        case "mixture":
            return _best_mixture(gaussian, fitted_to, judge, config, seed)
        case "flow":
            flow = train_flow(gaussian, fitted_to, judge, config.flow_steps, seed)
            return flow, lambda _: flow  # it needs images kept out to stop by


def _best_mixture(
    gaussian: GaussianDensity, fitted_to: DiagonalGaussian, judge: Judge, config: DensityConfig, seed: int
) -> tuple[MixtureDensity, Refit]:
    """Twice as many components as long as that helps, each more or less loyal to the common covariance."""
    largest = min(config.max_components, len(fitted_to.mean) // IMAGES_PER_COMPONENT)
    best_nats, best = -math.inf, None
    count = min(2, max(largest, 1))
    while count <= max(largest, 1):
        found = []
        for loyalty in LOYALTIES:
            refit = partial(_mixture, count=count, loyalty=loyalty, seed=seed)
            density = fit_mixture(gaussian, fitted_to, count, loyalty, generator(seed, f"mixture of {count}"))
            found.append((float(judge.log_likelihoods(density).mean()), density, refit))
        nats, density, refit = max(found, key=lambda entry: entry[0])
        if nats <= best_nats:
            break
        best_nats, best = nats, (density, refit)
        count *= 2
    assert best is not None
    return best


def _mixture(posteriors: DiagonalGaussian, count: int, loyalty: float, seed: int) -> MixtureDensity:
    return fit_mixture(fit_gaussian(posteriors), posteriors, count, loyalty, generator(seed, f"mixture of {count}"))
