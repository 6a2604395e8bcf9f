"""Figures of one pass: how near reconstructions are, what the latents carry, how likely the images are."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import numpy.typing as npt
import torch

from unified_vae.core.posterior import MOST_CORRELATED, DiagonalGaussian
from unified_vae.experiment.evaluation.figure import Figure
from unified_vae.experiment.evaluation.networks import Networks
from unified_vae.experiment.evaluation.request import Group
from unified_vae.experiment.evaluation.seeing import Originals, Seen
from unified_vae.losses.lpips import ARCHITECTURES, LPIPS
from unified_vae.metrics import bootstrap, sets
from unified_vae.metrics.images import ms_ssim_scales, psnr, psnr_per_image
from unified_vae.metrics.latents import ACTIVE_VARIANCE, LatentDraws, LatentSums
from unified_vae.metrics.sets import INCEPTION, InceptionFeatures, frechet_distance

FEW_RESAMPLES = 20  # of what takes seconds each: a spread to about a sixth of itself
GAP_RESAMPLES = 100
GAP_UNITS = 512  # up to which the gap is resampled
SMALLEST_POWER = 1e-12

Draws = list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]
Told = Callable[[str], None]


# --- reconstructions -------------------------------------------------------------------------------------


def of_reconstructions(seen: Seen, originals: Originals, networks: Networks, seed: int, told: Told) -> list[Figure]:
    """PSNR twice, SSIM, MS-SSIM, LPIPS twice, sharpness, rFID, sliced Wasserstein."""
    size = originals.pictures.size
    return [
        *_likeness(seen, size, seed),
        *(_lpips(net, network, seen, size, seed) for net, network in networks.lpips.items()),
        _sharpness(seen, size, seed),
        _rfid(seen, originals, networks.inception, seed, told),
        _patches(seen, originals, seed, told),
    ]


def _likeness(seen: Seen, size: int, seed: int) -> list[Figure]:
    group, seen_at = Group.RECONSTRUCTION, f"{size} px"
    errors = seen.column("error")
    pooled = Figure("psnr.pooled", "PSNR, of the pooled error", group, "dB", "higher", resolution=seen_at)
    each = Figure("psnr.image_mean", "PSNR, mean over images", group, "dB", "higher", resolution=seen_at)
    metrics = f"torchmetrics {version('torchmetrics')}"
    scales = ms_ssim_scales(size)
    structure = Figure("ssim", "SSIM", group, "", "higher", f"{metrics}, window 11", seen_at)
    multi = Figure("ms_ssim", "MS-SSIM", group, "", "higher", f"{metrics}, {scales} of 5 scales", seen_at)
    return [
        pooled.averaged(errors.numpy(), seed, lambda mean: psnr(float(mean))),
        each.averaged(psnr_per_image(errors).numpy(), seed),
        *(
            figure.averaged(seen.column(figure.name).numpy(), seed)
            if figure.name in seen.columns
            else figure.unavailable(f"images of {size} px have no room for its windows")
            for figure in (structure, multi)
        ),
    ]


def _lpips(net: str, network: LPIPS | str, seen: Seen, size: int, seed: int) -> Figure:
    title = ARCHITECTURES["alex" if net == "alex" else "vgg"].title
    words = f"LPIPS 0.1 with {title}, heads of torchmetrics"
    figure = Figure(f"lpips.{net}", f"LPIPS, {title}", Group.RECONSTRUCTION, "", "lower", words, f"{size} px")
    if isinstance(network, str):
        return figure.unavailable(network)
    return figure.averaged(seen.column(figure.name).numpy(), seed)


def _sharpness(seen: Seen, size: int, seed: int) -> Figure:
    figure = Figure("sharpness", "sharpness, detail kept", Group.RECONSTRUCTION, "", "near 1", resolution=f"{size} px")
    return figure.averaged(seen.column("detail").numpy(), seed, kept_power)


def kept_power(means: npt.NDArray[np.float64]) -> float:
    """Power of detail in reconstructions over that in originals."""
    return float(means[1] / max(means[0], SMALLEST_POWER))


def _rfid(seen: Seen, originals: Originals, network: InceptionFeatures | str, seed: int, told: Told) -> Figure:
    figure = Figure("rfid", "rFID", Group.RECONSTRUCTION, "", "lower", INCEPTION, _resized(originals.pictures.size))
    if isinstance(network, str):
        return figure.unavailable(network)
    assert originals.features is not None
    rebuilt = torch.cat(seen.features)
    draws: Draws = [(rows, rows) for rows in bootstrap.resamples(len(rebuilt), seed, "rfid", FEW_RESAMPLES)]
    return frechet_figure(figure, originals.features, rebuilt, draws, told)


def frechet_figure(figure: Figure, real: torch.Tensor, made: torch.Tensor, draws: Draws, told: Told) -> Figure:
    """A Fréchet distance with an interval by its spread over resamples."""
    if min(len(real), len(made)) < 2:
        return figure.unavailable("it needs two images or more")
    told(f"{figure.title}: the distance, and of {len(draws)} resamples")
    value = frechet_distance(real, made)
    found = [frechet_distance(real[one], made[other]) for one, other in draws]
    few = min(len(real), len(made))
    note = f"of {few:,} images it is too large; compare with the same number alone" if few < 10_000 else ""
    return figure.measured(value, bootstrap.around(value, found), few, note)


def _patches(seen: Seen, originals: Originals, seed: int, told: Told) -> Figure:
    figure = patches_figure(
        "swd.reconstructions", "sliced Wasserstein, reconstructions", Group.RECONSTRUCTION, originals
    )
    if figure.missing:
        return figure
    made = torch.cat(seen.kept)
    draws: Draws = [(rows, rows) for rows in bootstrap.resamples(len(made), seed, figure.name, FEW_RESAMPLES)]
    return patches_measured(figure, originals.kept, made, draws, seed, told)


def patches_figure(name: str, title: str, group: Group, originals: Originals) -> Figure:
    """The row of a sliced Wasserstein distance, without its number."""
    size = originals.pictures.size
    words = "Laplacian patches of 7 px (Karras et al. 2018), no network"
    figure = Figure(name, title, group, "thousandths", "lower", words, f"{size} px")
    if not sets.has_pyramid(size):
        return figure.unavailable("its pyramid needs images of 16, 32, 64, ... px")
    return figure


def patches_measured(
    figure: Figure, real: torch.Tensor, made: torch.Tensor, draws: Draws, seed: int, told: Told
) -> Figure:
    """A sliced Wasserstein distance with an interval by its spread over resamples."""
    told(f"{figure.title}: the distance, and of {len(draws)} resamples")
    value = sets.patch_distances(real, made, seed)["mean"]
    found = sets.resampled_patch_distances(real, made, draws, seed)
    return figure.measured(value, bootstrap.around(value, found), len(made))


def _resized(size: int) -> str:
    return f"{size} px, resized to 299"


# --- latents ---------------------------------------------------------------------------------------------


def of_latents(posterior: DiagonalGaussian, seed: int) -> list[Figure]:
    """Rate, active units, the gap of the aggregated posterior."""
    rate = Figure("rate", "rate, KL to N(0, I)", Group.LATENTS, "nats an image")
    active = Figure("active_units", "active units", Group.LATENTS, "units", "", "Burda et al. 2016")
    return [
        rate.averaged(posterior.kl_per_unit().double().sum(1).numpy(), seed),
        _active(active, posterior.mean.double().numpy(), seed),
        _gap(posterior, seed),
    ]


def _active(figure: Figure, means: npt.NDArray[np.float64], seed: int) -> Figure:
    """By the variance of each unit's posterior means, of which a resample has a little less."""
    value = float((means.var(0) > ACTIVE_VARIANCE).sum())
    resampled = bootstrap.resamples(len(means), seed, figure.name, GAP_RESAMPLES)
    found = [float((means[rows].var(0) > ACTIVE_VARIANCE).sum()) for rows in resampled]
    return figure.measured(value, bootstrap.percentiles(found), len(means), f"of {means.shape[1]:,} units")


def _gap(posterior: DiagonalGaussian, seed: int) -> Figure:
    figure = Figure("posterior.gap", "gap, q(z) to N(0, I)", Group.LATENTS, "nats an image", "lower")
    images, units = posterior.mean.shape
    value = _gap_of(posterior)
    if units > GAP_UNITS:
        words = "of units one by one, since there are many; no interval" if units > MOST_CORRELATED else "no interval"
        return figure.measured(value, None, images, f"{words}: more than {GAP_UNITS} units")
    found = [
        _gap_of(DiagonalGaussian(posterior.mean[rows], posterior.logvar[rows]))
        for rows in bootstrap.resamples(images, seed, figure.name, GAP_RESAMPLES)
    ]
    return figure.measured(value, bootstrap.around(value, found), images)


def _gap_of(posterior: DiagonalGaussian) -> float:
    sums = LatentSums.empty(posterior.mean.shape[1], torch.device("cpu"), torch.float64)
    sums.add(posterior)
    return sums.gap()


# --- likelihood ------------------------------------------------------------------------------------------


def of_likelihood(draws: LatentDraws, size: int, seed: int) -> list[Figure]:
    """ELBO and importance-weighted bound, as code lengths: lower is better."""
    variance, count = draws.variance(), draws.errors.shape[1]
    words = f"Gaussian pixels of sigma {math.sqrt(variance):.4f}, {count} latents an image"
    elbo = Figure("elbo", "ELBO", Group.LIKELIHOOD, "bits/dim", "lower", words, f"{size} px")
    title = f"bound of {count} draws (IWAE)"
    bound = Figure(f"iwae.{count}", title, Group.LIKELIHOOD, "bits/dim", "lower", words, f"{size} px")
    return [
        elbo.averaged(draws.bits_per_dim(draws.elbo(variance)).numpy(), seed),
        bound.averaged(draws.bits_per_dim(draws.importance_bound(variance)).numpy(), seed),
    ]
