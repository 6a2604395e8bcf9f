"""Choose the latent density on held-out latents of training images.

Sampling from N(0, I) assumes that the aggregated posterior q(z) = mean over images of q(z|x) is N(0, I). It is not
(Hoffman & Johnson 2016; Rezende & Viola 2018, arXiv 1810.00597), and the more nats the latents hold, the less. A
density fitted to q(z) afterwards leaves the model as it is (Dai & Wipf 2019, arXiv 1903.05789; Ghosh et al. 2020,
arXiv 1903.12436). Kinds are compared on draws from the posteriors of images that none of them was fitted to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from unified_vae.config.model import DensityConfig, DensityKind
from unified_vae.core.distributions import MOST_CORRELATED, DiagonalGaussian
from unified_vae.core.errors import DataError
from unified_vae.core.rng import key, permutation
from unified_vae.data.batches import gather
from unified_vae.data.dataset import PackedSplit
from unified_vae.models.density import (
    GaussianDensity,
    LatentDensity,
    NormalDensity,
    check_finite,
    fit_gaussian,
    fit_mixture,
    fit_units,
    sample_posteriors,
    subset,
)
from unified_vae.models.vae import VAE

KINDS: tuple[DensityKind, ...] = ("normal", "gaussian", "mixture")  # from the simplest on
KINDS_OF_MANY: tuple[DensityKind, ...] = ("normal", "units")  # of more than MOST_CORRELATED latents
MIN_IMAGES = 10  # to choose by
MIN_HELD_OUT, MAX_HELD_OUT = 2, 2000  # images
IMAGES_PER_COMPONENT = 10
PRIOR_STRENGTHS = (0.5, 4.0)  # of the common covariance of a mixture, in images per modelled coordinate
DRAWS = 4  # from each held-out posterior
ENOUGH_FOR_UNITS = 1000  # images, where each unit is fitted by itself

Progress = Callable[[str, int, int | None], None]
"""Called with (what, done, of how many)."""

Refit = Callable[[DiagonalGaussian], LatentDensity]


@dataclass(frozen=True)
class Candidate:
    """How likely held-out latents are under a density that was fitted to the others.

    Attributes:
        log_likelihoods: [held-out images], nats per image: natural logarithms, means over an image's views and draws.
        refit: fits the same kind and shape to other posteriors: in the end to all of them.
    """

    log_likelihoods: Tensor
    refit: Refit

    def nats(self) -> float:
        """Return the mean over the images."""
        return float(self.log_likelihoods.mean())


@dataclass(frozen=True)
class FittedDensity:
    """The result of a fit.

    Attributes:
        nats: kind -> mean log likelihood of held-out images; empty where none could be held out.
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
    """Fit the density that `config` asks for, on the CPU.

    Args:
        posteriors: of training images, [views * n, latents].
        seed: decides the held-out images, draws and first centers.
        views: of each image, as mirrored and not; all images' first ones before all their second ones.

    Raises:
        DataError: the requested kind cannot be fitted to so many latents.
        ArithmeticError: the posteriors have NaN/Inf.
    """
    check_finite(posteriors)
    rows, latents = posteriors.mean.shape
    images = rows // views
    if config.fit == "normal":
        return FittedDensity(NormalDensity(latents), {}, 0)
    possible = KINDS if latents <= MOST_CORRELATED else KINDS_OF_MANY
    if config.fit not in ("auto", "units", *possible):
        raise DataError(
            f"density.fit={config.fit} looks at all pairs of latents, and {latents:,} are too many for that (at most "
            f"{MOST_CORRELATED:,}): set density.fit=auto"
        )
    if images >= MIN_IMAGES:
        kinds: tuple[DensityKind, ...] = possible if config.fit == "auto" else ("normal", config.fit)
        candidates = fit_kinds(posteriors, config, seed, kinds, progress, views)
        chosen = choose(candidates) if config.fit == "auto" else config.fit
        nats = {kind: candidate.nats() for kind, candidate in candidates.items()}
        return FittedDensity(candidates[chosen].refit(posteriors), nats, images)

    # too few images to hold any out: N(0, I), or what was asked for
    if config.fit == "units":
        return FittedDensity(fit_units(posteriors), {}, images)
    if config.fit != "auto":
        note = f"{images} training images give a Gaussian whose samples are mixes of these"
        return FittedDensity(fit_gaussian(posteriors, views), {}, images, note)
    note = (
        f"{images} training images are too few to choose a latent density by ({MIN_IMAGES} are needed), so new images "
        "are sampled from N(0, I)"
    )
    return FittedDensity(NormalDensity(latents), {}, 0, note)


def fit_kinds(
    posteriors: DiagonalGaussian,
    config: DensityConfig,
    seed: int,
    kinds: tuple[DensityKind, ...] = KINDS,
    progress: Progress | None = None,
    views: int = 1,
) -> dict[DensityKind, Candidate]:
    """Fit each kind to nine tenths of the images and score it on the rest, for a choice or a comparison."""
    # hold out a tenth of the images, each with all its views; all kinds are scored on the same draws from these
    count = len(posteriors.mean) // views
    order = torch.randperm(count, generator=generator(seed, "split"))
    out = min(max(count // 10, MIN_HELD_OUT), MAX_HELD_OUT)
    first = torch.arange(views)[:, None] * count
    held_out = subset(posteriors, (first + order[:out]).flatten())
    fitted = subset(posteriors, (first + order[out:]).flatten())
    source = generator(seed, "kept out")
    draws = torch.cat([sample_posteriors(held_out, source) for _ in range(DRAWS)])

    @torch.no_grad()
    def score(density: LatentDensity, refit: Refit) -> Candidate:
        return Candidate(density.log_prob(draws).view(-1, out).mean(0), refit)

    def score_mixture(components: int, strength: float) -> Candidate:
        def fit(gaussian: GaussianDensity, posteriors: DiagonalGaussian) -> LatentDensity:
            centers = generator(seed, f"mixture of {components}")
            return fit_mixture(gaussian, posteriors, components, strength, centers)

        return score(fit(gaussian(), fitted), lambda chosen: fit(fit_gaussian(chosen, views), chosen))

    candidates: dict[DensityKind, Candidate] = {}
    normal = NormalDensity(posteriors.mean.shape[1])
    gaussian = cache(partial(fit_gaussian, fitted, views))
    for number, kind in enumerate(kinds):
        if progress:
            progress(f"fitting a latent density: {kind}", number, len(kinds))
        if kind == "normal":
            candidates[kind] = score(normal, lambda _: normal)
        elif kind == "units":
            candidates[kind] = score(fit_units(fitted), fit_units)
        elif kind == "gaussian":
            candidates[kind] = score(gaussian(), partial(fit_gaussian, views=views))
        else:
            # twice as many components as long as that helps, each with a weak and a strong prior on its covariance
            most = max(min(config.max_components, len(fitted.mean) // IMAGES_PER_COMPONENT), 1)
            components = min(2, most)
            while components <= most:
                tried = [score_mixture(components, strength) for strength in PRIOR_STRENGTHS]
                better = max(tried, key=Candidate.nats)
                if kind in candidates and better.nats() <= candidates[kind].nats():
                    break
                candidates[kind], components = better, 2 * components
    if progress:
        progress("latent densities fitted", len(kinds), len(kinds))
    return candidates


def choose(candidates: Mapping[DensityKind, Candidate]) -> DensityKind:
    """Return the likeliest kind; a less simple one has to be likelier by more than the standard error of its gain.

    (The rule of one standard error: Breiman, Friedman, Olshen, Stone 1984, Classification and Regression Trees, 3.4.3.)
    """
    best: DensityKind = "normal"
    for kind in candidates:
        if kind != best:
            gains = candidates[kind].log_likelihoods - candidates[best].log_likelihoods
            error = float(gains.std()) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
            best = kind if float(gains.mean()) > error else best
    return best


def generator(seed: int, purpose: str) -> torch.Generator:
    """Return the random numbers of a part of the fit."""
    return torch.Generator().manual_seed(key(seed, "density", purpose) % 2**63)


# --- the latents it is fitted to -------------------------------------------------------------------------


@torch.no_grad()
def encode_training_images(
    model: VAE,
    split: PackedSplit,
    max_images: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    mirrored: bool = False,
) -> DiagonalGaussian:
    """Return q(z|x) of up to `max_images` images, chosen by the seed, on the CPU: [n, latents]; without augmentation.

    Of a model with more than MOST_CORRELATED latents no more than ENOUGH_FOR_UNITS.

    Args:
        progress: called with (done, of how many).
        mirrored: of the images' mirror images.
    """
    if model.latents > MOST_CORRELATED:
        max_images = min(max_images, ENOUGH_FOR_UNITS)
    chosen = np.sort(permutation(key(seed, "density images"), len(split))[:max_images])
    device = next(model.parameters()).device
    encoded = []
    for start in range(0, len(chosen), model.encode_batch_size):
        batch = chosen[start : start + model.encode_batch_size]
        images = gather(split, batch).to(device).float() / 255
        encoded.append(model.encode(images.flip(3) if mirrored else images))
        if progress:
            progress(start + len(batch), len(chosen))
    means, logvars = ([getattr(posterior, name).cpu() for posterior in encoded] for name in ("mean", "logvar"))
    return DiagonalGaussian(torch.cat(means), torch.cat(logvars))
