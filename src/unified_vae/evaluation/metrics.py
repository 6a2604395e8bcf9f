"""All metrics of one model on a set of images, group by group, each as a result with its interval."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from unified_vae.config.loss import LPIPSConfig
from unified_vae.core.distributions import MOST_CORRELATED, DiagonalGaussian
from unified_vae.core.errors import EnvironmentProblem
from unified_vae.core.events import Observer
from unified_vae.core.rng import key, uniforms
from unified_vae.evaluation import Group
from unified_vae.evaluation.bootstrap import Better, MetricResult, resamples
from unified_vae.evaluation.images import EvaluationImages
from unified_vae.losses.perceptual import (
    ARCHITECTURES,
    LPIPS,
    Backbone,
    WeightsUnavailable,
    fetch_state_dict,
    load_weights,
    read_state_dict,
)
from unified_vae.metrics import images as image_metrics
from unified_vae.metrics import latents as latent_metrics
from unified_vae.metrics import sets
from unified_vae.metrics.latents import ACTIVE_VARIANCE, Labels, LatentDraws, Latents, LatentSums
from unified_vae.metrics.sets import INCEPTION, INCEPTION_FILE, InceptionFeatures, PairDraws
from unified_vae.models.density import LatentDensity
from unified_vae.models.vae import VAE

MAX_SAMPLES = 2000
LIKELIHOOD_IMAGES = 500  # each is decoded once per draw
KEPT_VALUES = 1 << 27  # pixel values of a set that is kept for the sliced Wasserstein distance: half a GiB
MAX_KEPT = 1000
SMALLEST_SSIM = 6  # pixels: the window's border is mirrored
SMALLEST_POWER = 1e-12

SLOW_RESAMPLES = 20  # of what takes seconds each: a spread to about a sixth of itself
MEDIUM_RESAMPLES = 100
KERNEL_RESAMPLES = 200
GAP_UNITS = 512  # up to which the gap is resampled

Net = Literal["alex", "vgg"]
LPIPS_NETS: tuple[Net, ...] = ("alex", "vgg")
FITTED = "fitted"
"""Ends the names of metrics of samples from a fitted density."""


@dataclass(frozen=True)
class EvaluationContext:
    """What all models share that are measured on the same images at the same size.

    Attributes:
        lpips: backbone -> LPIPS with it, or why it is not available.
        inception: features for FID, KID, precision and recall, or why they are not available.
        features: [images, 2048] of the originals; None without Inception.
        kept: [n, channels, size, size] in [0, 1], the first originals, for distances of patches.
        samples: new images for each density; None takes as many as there are images, at most MAX_SAMPLES.
        draws: latents per image for the bounds on the likelihood.
        skip: groups to leave out.
        seed: of everything that is drawn: latents, patches, resamples.
    """

    images: EvaluationImages
    lpips: Mapping[Net, LPIPS | str]
    inception: InceptionFeatures | str
    features: Tensor | None
    kept: Tensor
    device: torch.device
    observer: Observer
    samples: int | None
    draws: int
    skip: Collection[Group]
    seed: int

    @property
    def resolution(self) -> str:
        """What most metrics see."""
        return f"{self.images.size} px"


def build_context(
    images: EvaluationImages,
    device: torch.device,
    observer: Observer,
    *,
    samples: int | None,
    draws: int,
    skip: Collection[Group],
    inception: Path | None,
    seed: int,
) -> EvaluationContext:
    """Load the networks that are available, and measure what depends on the images alone.

    Args:
        inception: file of Inception's weights; None looks in the cache of downloaded weights.

    Raises:
        EnvironmentProblem: the file `inception` cannot be used.
    """
    skipped = "left out with --skip"
    lpips: dict[Net, LPIPS | str] = dict.fromkeys(LPIPS_NETS, skipped)
    network: InceptionFeatures | str = skipped
    if Group.RECONSTRUCTION not in skip or Group.SAMPLES not in skip:
        lpips = {net: _load_lpips(net, images.size, device, observer.notice) for net in LPIPS_NETS}
        network = _load_inception(device, inception, observer.notice)
    count = min(MAX_KEPT, KEPT_VALUES // (images.channels * images.size**2), images.count)
    needed = images.count if isinstance(network, InceptionFeatures) else count
    features, kept, done = [], [], 0
    for raw in images.batches(needed):
        batch = raw.to(device).float() / 255
        if isinstance(network, InceptionFeatures):
            features.append(network(batch))
        if done < count:
            kept.append(batch[: count - done].cpu())
        done += len(batch)
        observer.phase("reading the images", done, needed)
    return EvaluationContext(
        images, lpips, network, torch.cat(features) if features else None, torch.cat(kept), device, observer,
        samples, draws, skip, seed,
    )  # fmt: skip


def measure(
    model: VAE, densities: Sequence[LatentDensity], context: EvaluationContext, label: str = ""
) -> list[MetricResult]:
    """Measure all metrics of a model on its device.

    Args:
        densities: what new images are drawn from, one after the other.
        label: ends the lines of progress, e.g. `, raw weights`.
    """
    skip = context.skip
    outputs = collect_outputs(model, context, f"reconstructing the images{label}")
    results: list[MetricResult] = []
    if Group.RECONSTRUCTION not in skip:
        results += reconstruction_metrics(outputs, context)
    if Group.LATENTS not in skip:
        context.observer.phase(f"the latents{label}", 0, None)
        results += posterior_metrics(DiagonalGaussian(outputs["mean"], outputs["logvar"]), context.seed)
    if Group.LIKELIHOOD not in skip:
        draws = draw_latents(model, context, f"the likelihood, {context.draws} latents per image{label}")
        results += likelihood_metrics(draws, context)
    if Group.SAMPLES not in skip:
        for density in densities:
            text = f"drawing new images from {density.describe()}{label}"
            results += sample_metrics(model, density, context, text)
    if Group.FACTORS not in skip:
        means = outputs["mean"].double().numpy()
        results.append(mutual_information_gap(means, context.images.factors(), context.seed))
    return results


# --- networks --------------------------------------------------------------------------------------------


def _load_lpips(net: Net, size: int, device: torch.device, on_message: Callable[[str], None]) -> LPIPS | str:
    architecture = ARCHITECTURES[net]
    needed = architecture.minimum_size(architecture.features)
    if size < needed:
        return f"it needs images of at least {needed} px"
    try:
        weights = load_weights(architecture, None, f"lpips.{net}.weights_path", on_message)
        return LPIPS(LPIPSConfig(net=net), Backbone(net, weights)).to(device)
    except WeightsUnavailable as problem:
        return f"{problem.reason}; {problem.remedy}"
    except EnvironmentProblem as problem:
        return str(problem)


def _load_inception(
    device: torch.device, file: Path | None, on_message: Callable[[str], None]
) -> InceptionFeatures | str:
    """From the user's file, or from the cache of downloaded weights under either of its names; else downloaded."""
    try:
        url, names = sets.inception_url(), sets.INCEPTION_OTHER_NAMES
        if file is not None:
            weights = read_state_dict(file)
        else:
            weights = fetch_state_dict("Inception v3", url, "--inception", on_message, names)
        return InceptionFeatures(weights, device)
    except WeightsUnavailable as problem:
        return f"{problem.reason}; {problem.remedy} or name it with --inception"
    except EnvironmentProblem as problem:
        if file is not None:
            raise EnvironmentProblem(f"--inception: {problem}; give the file {INCEPTION_FILE}") from None
        return str(problem)


# --- passes of a model over the images -------------------------------------------------------------------


@torch.no_grad()
def collect_outputs(model: VAE, context: EvaluationContext, text: str) -> dict[str, Tensor]:
    """Encode every image and decode its posterior's mean.

    Returns:
        A row per image of `mean`, `logvar` and, unless the reconstruction is skipped, `error` (mean squared), `detail`
        (power of the original and of the reconstruction), `ssim`, `ms_ssim`, `lpips.NET` and `features` where they can
        be had; and `kept`, the first reconstructions.
    """
    rows: dict[str, list[Tensor]] = defaultdict(list)
    images, done = context.images, 0
    dtype = torch.float32 if context.device.type == "mps" else torch.float64
    spectrum = image_metrics.SpectrumSums.empty(images.size, context.device, dtype)
    for raw in images.batches():
        batch = raw.to(context.device).float() / 255
        output = model(batch)
        row = {"mean": output.posterior.mean.flatten(1), "logvar": output.posterior.logvar.flatten(1)}
        if Group.RECONSTRUCTION not in context.skip:
            rebuilt = output.reconstruction.clamp(0, 1)
            row["error"] = image_metrics.squared_errors(rebuilt, batch)
            row["detail"] = torch.stack([spectrum.detail_power(batch), spectrum.detail_power(rebuilt)], 1)
            if images.size >= SMALLEST_SSIM:
                row["ssim"] = image_metrics.ssim(rebuilt, batch)
            if image_metrics.ms_ssim_scales(images.size) > 1:
                row["ms_ssim"] = image_metrics.ms_ssim(rebuilt, batch)
            for net, network in context.lpips.items():
                if isinstance(network, LPIPS):
                    row[f"lpips.{net}"] = network(rebuilt, batch)
            if isinstance(context.inception, InceptionFeatures):
                row["features"] = context.inception(rebuilt)
            if done < len(context.kept):
                row["kept"] = rebuilt[: len(context.kept) - done]
        for name, values in row.items():
            rows[name].append(values.cpu())
        done += len(batch)
        context.observer.phase(text, done, images.count)
    return {name: torch.cat(values) for name, values in rows.items()}


@torch.no_grad()
def draw_latents(model: VAE, context: EvaluationContext, text: str) -> LatentDraws:
    """Draw latents of each of the first images, and decode them.

    The noise of an image's draw is a function of (seed, draw, the image's number) alone.
    """
    images = context.images
    count, done = min(LIKELIHOOD_IMAGES, images.count), 0
    errors, ratios, rates = [], [], []
    for raw in images.batches(count):
        batch = raw.to(context.device).float() / 255
        posterior = model.encode(batch)
        shape, on_host = posterior.mean.shape, DiagonalGaussian(posterior.mean.cpu(), posterior.logvar.cpu())
        batch_errors, batch_ratios = [], []
        for draw in range(context.draws):
            stream = key(context.seed, "importance draws", draw)
            uniform = uniforms(stream, np.arange(done, done + len(batch)), shape[1:].numel())
            noise = torch.special.ndtri(torch.from_numpy(np.maximum(uniform, 2.0**-54))).float().view(shape)
            rebuilt = model.decode(posterior.sample(noise.to(context.device)))
            batch_errors.append((rebuilt - batch).square().flatten(1).sum(1).cpu().double())
            batch_ratios.append(latent_metrics.log_ratio(on_host, noise))
        errors.append(torch.stack(batch_errors, 1))
        ratios.append(torch.stack(batch_ratios, 1))
        rates.append(posterior.kl_per_unit().flatten(1).cpu().double().sum(1))
        done += len(batch)
        context.observer.phase(text, done, count)
    return LatentDraws(torch.cat(errors), torch.cat(ratios), torch.cat(rates), images.channels * images.size**2)


# --- metrics of the group "reconstruction" ---------------------------------------------------------------


def reconstruction_metrics(outputs: Mapping[str, Tensor], context: EvaluationContext) -> list[MetricResult]:
    """PSNR twice, SSIM, MS-SSIM, LPIPS twice, sharpness, rFID, sliced Wasserstein."""
    size, seed = context.images.size, context.seed

    def metric(
        name: str, title: str, unit: str = "", better: Better = "higher", evaluator: str = "unified-vae"
    ) -> MetricResult:
        return MetricResult(name, title, Group.RECONSTRUCTION, unit, better, evaluator, context.resolution)

    errors = outputs["error"]
    pooled = metric("psnr.pooled", "PSNR, of the pooled error", "dB")
    image_mean = metric("psnr.image_mean", "PSNR, mean over images", "dB")
    results = [
        pooled.with_mean(errors.numpy(), seed, lambda mean: image_metrics.psnr(float(mean))),
        image_mean.with_mean(image_metrics.psnr_per_image(errors).numpy(), seed),
    ]
    library = f"torchmetrics {version('torchmetrics')}"
    scales = f"{image_metrics.ms_ssim_scales(size)} of 5 scales"
    for name, title, words in (("ssim", "SSIM", "window 11"), ("ms_ssim", "MS-SSIM", scales)):
        result = metric(name, title, evaluator=f"{library}, {words}")
        if name in outputs:
            results.append(result.with_mean(outputs[name].numpy(), seed))
        else:
            results.append(result.with_missing(f"images of {size} px are smaller than its windows"))
    for net, network in context.lpips.items():
        title = ARCHITECTURES[net].title
        evaluator = f"LPIPS 0.1 with {title}, heads of torchmetrics"
        result = metric(f"lpips.{net}", f"LPIPS, {title}", "", "lower", evaluator)
        if isinstance(network, str):
            results.append(result.with_missing(network))
        else:
            results.append(result.with_mean(outputs[result.name].numpy(), seed))
    sharpness = metric("sharpness", "sharpness, detail kept", "", "near 1")
    detail = outputs["detail"].numpy()
    results.append(sharpness.with_mean(detail, seed, lambda mean: float(mean[1] / max(mean[0], SMALLEST_POWER))))
    draws = [(rows, rows) for rows in resamples(context.images.count, seed, "rfid", SLOW_RESAMPLES)]
    rfid = replace(metric("rfid", "rFID", "", "lower", INCEPTION), resolution=f"{size} px, resized to 299")
    results.append(_frechet(rfid, context, outputs.get("features"), draws))
    name = "swd.reconstructions"
    draws = [(rows, rows) for rows in resamples(len(outputs["kept"]), seed, name, SLOW_RESAMPLES)]
    swd = MetricResult(name, "sliced Wasserstein, reconstructions", Group.RECONSTRUCTION)
    return [*results, _sliced_wasserstein(swd, context, outputs["kept"], draws)]


def _frechet(
    result: MetricResult, context: EvaluationContext, features: Tensor | None, draws: PairDraws
) -> MetricResult:
    """Fréchet distance of the originals and of what was generated, by their features."""
    if isinstance(context.inception, str):
        return result.with_missing(context.inception)
    assert context.features is not None and features is not None
    real, count = context.features, min(len(context.features), len(features))
    if count < 2:
        return result.with_missing("it needs two images or more")
    context.observer.phase(f"{result.title}: the distance, and of {len(draws)} resamples", 0, None)
    resampled = [sets.frechet_distance(real[a], features[b]) for a, b in draws]
    note = f"of {count:,} images it is too large; compare with the same number alone" if count < 10_000 else ""
    return result.with_value(sets.frechet_distance(real, features), count, resampled, biased=True, note=note)


def _sliced_wasserstein(
    result: MetricResult, context: EvaluationContext, generated: Tensor, draws: PairDraws
) -> MetricResult:
    """Sliced Wasserstein distance of patches of the first originals and of as many generated images."""
    evaluator = "Laplacian patches of 7 px (Karras et al. 2018), no network"
    result = replace(result, unit="thousandths", better="lower", evaluator=evaluator, resolution=context.resolution)
    if not sets.has_pyramid(context.images.size):
        return result.with_missing("its pyramid needs images of 16, 32, 64, ... px")
    context.observer.phase(f"{result.title}: the distance, and of {len(draws)} resamples", 0, None)
    real = context.kept[: len(generated)]
    value = sets.patch_distances(real, generated, context.seed)["mean"]
    resampled = sets.resampled_patch_distances(real, generated, draws, context.seed)
    return result.with_value(value, len(generated), resampled, biased=True)


# --- metrics of the groups "latents" and "likelihood" ----------------------------------------------------


def posterior_metrics(posterior: DiagonalGaussian, seed: int) -> list[MetricResult]:
    """Rate, active units, the gap of the aggregate posterior."""
    rate = MetricResult("rate", "rate, KL to N(0, I)", Group.LATENTS, "nats per image")
    active = MetricResult("active_units", "active units", Group.LATENTS, "units", "", "Burda et al. 2016")
    gap = MetricResult("posterior.gap", "gap, q(z) to N(0, I)", Group.LATENTS, "nats per image", "lower")
    images, units = posterior.mean.shape
    means = posterior.mean.double().numpy()

    def count_active(means: Latents) -> float:
        return float((means.var(0) > ACTIVE_VARIANCE).sum())

    def measure_gap(posterior: DiagonalGaussian) -> float:
        sums = LatentSums.empty(units, torch.device("cpu"), torch.float64)
        sums.add(posterior)
        return sums.gap()

    resampled = [count_active(means[rows]) for rows in resamples(images, seed, active.name, MEDIUM_RESAMPLES)]
    results = [
        rate.with_mean(posterior.kl_per_unit().double().sum(1).numpy(), seed),
        active.with_value(count_active(means), images, resampled, note=f"of {units:,} units"),
    ]
    if units > GAP_UNITS:
        words = "of units one by one, since there are many; no interval" if units > MOST_CORRELATED else "no interval"
        note = f"{words}: more than {GAP_UNITS} units"
        return [*results, gap.with_value(measure_gap(posterior), images, note=note)]
    gaps = [
        measure_gap(DiagonalGaussian(posterior.mean[rows], posterior.logvar[rows]))
        for rows in resamples(images, seed, gap.name, MEDIUM_RESAMPLES)
    ]
    return [*results, gap.with_value(measure_gap(posterior), images, gaps, biased=True)]


def likelihood_metrics(draws: LatentDraws, context: EvaluationContext) -> list[MetricResult]:
    """ELBO and importance-weighted bound, as code lengths: lower is better."""
    variance, count = draws.variance(), draws.errors.shape[1]
    evaluator = f"Gaussian pixels of sigma {math.sqrt(variance):.4f}, {count} latents per image"
    bounds = (
        ("elbo", "ELBO", draws.elbo(variance)),
        (f"iwae.{count}", f"bound of {count} draws (IWAE)", draws.importance_bound(variance)),
    )
    return [
        MetricResult(name, title, Group.LIKELIHOOD, "bits/dim", "lower", evaluator, context.resolution).with_mean(
            draws.bits_per_dim(nats).numpy(), context.seed
        )
        for name, title, nats in bounds
    ]


# --- metrics of the group "samples" ----------------------------------------------------------------------


@torch.no_grad()
def sample_metrics(model: VAE, density: LatentDensity, context: EvaluationContext, text: str) -> list[MetricResult]:
    """FID, KID, precision, recall and sliced Wasserstein of new images that are drawn from one density."""
    # the first images, and the features of all; the same whatever the batch
    images, seed, inception = context.images, context.seed, context.inception
    count = context.samples or min(MAX_SAMPLES, images.count)
    if isinstance(inception, str):
        count = min(count, len(context.kept))
    generator = torch.Generator().manual_seed(key(seed, "evaluation samples") % 2**63)
    kept, feature_batches = [], []
    for done in range(0, count, images.batch_size):
        latents = density.sample(min(images.batch_size, count - done), generator)
        batch = model.decode(latents.to(context.device)).clamp(0, 1)
        if done < len(context.kept):
            kept.append(batch[: len(context.kept) - done].cpu())
        if isinstance(inception, InceptionFeatures):
            feature_batches.append(inception(batch))
        context.observer.phase(text, done + len(batch), count)
    fitted = density.kind != "normal"
    suffix, words = (FITTED, "fitted density") if fitted else ("normal", density.describe())

    def metric(name: str, title: str, better: Better, unit: str = "") -> MetricResult:
        seen = f"{images.size} px, resized to 299"
        return MetricResult(f"{name}.{suffix}", f"{title}, {words}", Group.SAMPLES, unit, better, INCEPTION, seen)

    def draw_pairs(real: int, made: int, what: str, times: int) -> PairDraws:
        sides = (resamples(real, seed, f"real{what}", times), resamples(made, seed, f"made{what}", times))
        return list(zip(*sides, strict=True))

    fid, kid = metric("fid", "FID", "lower"), metric("kid", "KID", "lower", "thousandths")
    precision, recall = metric("precision", "precision", "higher"), metric("recall", "recall", "higher")
    if isinstance(inception, str):
        results = [result.with_missing(inception) for result in (fid, kid, precision, recall)]
    else:
        real, features = context.features, torch.cat(feature_batches)
        assert real is not None
        draws = draw_pairs(len(real), count, "", KERNEL_RESAMPLES)
        if min(len(real), count) < 2:
            kid = kid.with_missing("it needs two images or more")
        else:
            resampled = [1e3 * distance for distance in sets.resampled_kernel_distances(real, features, draws)]
            kid = kid.with_value(
                1e3 * sets.kernel_distance(real, features),
                min(len(real), count),
                resampled,
                biased=True,
                minimum=-math.inf,  # unbiased over pairs of images, and so of either sign
                note="unbiased over all pairs, not over subsets",
            )
        results = [_frechet(fid, context, features, draws[:SLOW_RESAMPLES]), kid]
        # resampled with the manifold as it is
        for result, manifold, tested in ((precision, real, features), (recall, features, real)):
            if len(manifold) <= sets.NEIGHBORS:
                results.append(result.with_missing(f"it needs more than {sets.NEIGHBORS} images"))
                continue
            inside = sets.precision(manifold, tested).double().numpy()
            results.append(result.with_mean(inside, seed, note=f"k = {sets.NEIGHBORS}, in Inception's features"))
    generated = torch.cat(kept)
    patch_draws = draw_pairs(len(generated), len(generated), " patches", SLOW_RESAMPLES)
    swd = MetricResult(f"swd.{suffix}", f"sliced Wasserstein, {words}", Group.SAMPLES)
    results.append(_sliced_wasserstein(swd, context, generated, patch_draws))
    if not fitted:
        return results
    source = f"drawn from {density.describe()}"
    return [replace(result, note=f"{result.note}; {source}" if result.note else source) for result in results]


# --- metrics of the group "factors" ----------------------------------------------------------------------


MIG = MetricResult("mig", "MIG", Group.FACTORS, "", "higher", "as disentanglement_lib defines it, 20 bins")


def mutual_information_gap(means: Latents, labels: Mapping[str, Labels], seed: int) -> MetricResult:
    """MIG, where the images are labeled with the factors they were made from.

    Args:
        means: posterior means, [images, latents].
        labels: factor -> its number in each image.
    """
    varied = [values for values in labels.values() if len(np.unique(values)) > 1]
    if len(varied) < 2:
        have = "one label" if varied else "no label that varies"
        return MIG.with_missing(
            f"it needs images labeled with two factors or more, and these have {have}; the built-in set has 18"
        )
    if means.shape[1] < 2:
        return MIG.with_missing("it needs two latents or more")
    factors, bins = np.stack(varied, 1), latent_metrics.bin_latents(means)
    draws = resamples(len(bins), seed, MIG.name, MEDIUM_RESAMPLES)
    resampled = [latent_metrics.mig(bins[rows], factors[rows]) for rows in draws]
    return MIG.with_value(latent_metrics.mig(bins, factors), len(bins), resampled, biased=True)
