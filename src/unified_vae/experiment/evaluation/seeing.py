"""One pass of a model over the images: all that is measured of reconstructions and posteriors, image by image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from unified_vae.core.counter import key, uniforms
from unified_vae.core.posterior import DiagonalGaussian
from unified_vae.experiment.evaluation.networks import Networks
from unified_vae.experiment.evaluation.pictures import Pictures
from unified_vae.experiment.evaluation.request import Group, Settings
from unified_vae.losses.lpips import LPIPS
from unified_vae.metrics import images as image_metrics
from unified_vae.metrics.images import SpectrumSums
from unified_vae.metrics.latents import LatentDraws, log_ratio
from unified_vae.metrics.sets import InceptionFeatures
from unified_vae.models.vae import VAE

KEPT_VALUES = 1 << 27  # pixel values of a set that is kept for the sliced Wasserstein distance: half a GiB
MOST_KEPT = 1000
SMALLEST_SSIM = 6  # pixels: the window's border is mirrored

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Originals:
    """What is measured of the images alone, once for all models.

    Attributes:
        features: [images, 2048] of Inception; None without it.
        kept: [n, channels, size, size] in [0, 1], the first of them, for distances of patches.
    """

    pictures: Pictures
    features: Tensor | None
    kept: Tensor


@dataclass
class Seen:
    """What one pass saw; every list becomes one row an image."""

    columns: dict[str, list[Tensor]] = field(default_factory=dict)
    features: list[Tensor] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)

    def add(self, name: str, values: Tensor) -> None:
        """A batch's values, [batch, ...]."""
        self.columns.setdefault(name, []).append(values.cpu())

    def column(self, name: str) -> Tensor:
        """All images' values; KeyError where they were not measured."""
        return torch.cat(self.columns[name])

    def posterior(self) -> DiagonalGaussian:
        """Of all images, [images, latents]."""
        return DiagonalGaussian(self.column("mean"), self.column("logvar"))


def how_many_kept(pictures: Pictures) -> int:
    """Images of which patches are compared: bounded by memory."""
    return min(MOST_KEPT, KEPT_VALUES // (pictures.channels * pictures.size**2), pictures.count)


def look_at_originals(pictures: Pictures, networks: Networks, device: torch.device, progress: Progress) -> Originals:
    """Features and the first images."""
    count, features, kept, done = how_many_kept(pictures), [], [], 0
    needed = pictures.count if isinstance(networks.inception, InceptionFeatures) else count
    for raw in pictures.batches(needed):
        images = raw.to(device).float() / 255
        if isinstance(networks.inception, InceptionFeatures):
            features.append(networks.inception(images))
        if done < count:
            kept.append(images[: count - done].cpu())
        done += len(images)
        progress(done, needed)
    return Originals(pictures, torch.cat(features) if features else None, torch.cat(kept))


@torch.no_grad()
def look(
    model: VAE, pictures: Pictures, networks: Networks, device: torch.device, settings: Settings, progress: Progress
) -> Seen:
    """Encode every image and decode its posterior's mean."""
    seen, done, count = Seen(), 0, how_many_kept(pictures)
    spectrum = SpectrumSums.empty(pictures.size, device, torch.float32 if device.type == "mps" else torch.float64)
    rebuilds = Group.RECONSTRUCTION not in settings.skip
    for raw in pictures.batches():
        images = raw.to(device).float() / 255
        output = model(images)
        seen.add("mean", output.posterior.mean.flatten(1))
        seen.add("logvar", output.posterior.logvar.flatten(1))
        if rebuilds:
            _compare(seen, output.reconstruction.clamp(0, 1), images, networks, spectrum)
            if done < count:
                seen.kept.append(output.reconstruction[: count - done].clamp(0, 1).cpu())
        done += len(images)
        progress(done, pictures.count)
    return seen


def _compare(seen: Seen, found: Tensor, images: Tensor, networks: Networks, spectrum: SpectrumSums) -> None:
    seen.add("error", image_metrics.squared_errors(found, images))
    seen.add("detail", torch.stack([spectrum.detail_power(images), spectrum.detail_power(found)], 1))
    if images.shape[-1] >= SMALLEST_SSIM:
        seen.add("ssim", image_metrics.ssim(found, images))
    if image_metrics.ms_ssim_scales(images.shape[-1]) > 1:
        seen.add("ms_ssim", image_metrics.ms_ssim(found, images))
    for net, network in networks.lpips.items():
        if isinstance(network, LPIPS):
            seen.add(f"lpips.{net}", network(found, images))
    if isinstance(networks.inception, InceptionFeatures):
        seen.features.append(networks.inception(found))


@torch.no_grad()
def draw_latents(
    model: VAE, pictures: Pictures, images: int, device: torch.device, settings: Settings, progress: Progress
) -> LatentDraws:
    """Draw `settings.draws` latents of each of the first images, and decode them.

    The noise of an image's draw is a function of (seed, draw, the image's number) alone.
    """
    errors, ratios, rates, done = [], [], [], 0
    for raw in pictures.batches(images):
        batch = raw.to(device).float() / 255
        posterior = model.encode(batch)
        own_errors, own_ratios = [], []
        for draw in range(settings.draws):
            noise = _noise(settings.seed, draw, done, posterior.mean.shape).to(device)
            rebuilt = model.decode(posterior.sample(noise))
            own_errors.append((rebuilt - batch).square().flatten(1).sum(1).cpu().double())
            on_host = DiagonalGaussian(posterior.mean.cpu(), posterior.logvar.cpu())
            own_ratios.append(log_ratio(on_host, noise.cpu()))
        errors.append(torch.stack(own_errors, 1))
        ratios.append(torch.stack(own_ratios, 1))
        rates.append(posterior.kl_per_unit().flatten(1).cpu().double().sum(1))
        done += len(batch)
        progress(done, images)
    dimensions = pictures.channels * pictures.size**2
    return LatentDraws(torch.cat(errors), torch.cat(ratios), torch.cat(rates), dimensions)


def _noise(seed: int, draw: int, first: int, shape: torch.Size) -> Tensor:
    rows = uniforms(key(seed, "importance draws", draw), np.arange(first, first + shape[0]), shape[1:].numel())
    return torch.special.ndtri(torch.from_numpy(np.maximum(rows, 2.0**-54))).float().view(shape)
