"""Everything that is measured of one set of weights, group by group, with progress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from unified_vae.core.events import Observer
from unified_vae.experiment.evaluation import of_factors, of_images, of_samples, seeing
from unified_vae.experiment.evaluation.figure import Figure
from unified_vae.experiment.evaluation.networks import Networks, at_hand
from unified_vae.experiment.evaluation.pictures import Pictures
from unified_vae.experiment.evaluation.request import Group, Settings
from unified_vae.experiment.evaluation.seeing import Originals, Progress
from unified_vae.experiment.subject.same_weights import finished_model_or_notice
from unified_vae.experiment.subject.subject import Subject
from unified_vae.models.density.base import LatentDensity
from unified_vae.models.density.normal import NormalDensity
from unified_vae.models.vae import VAE

LIKELIHOOD_IMAGES = 500  # each is decoded once a draw


@dataclass(frozen=True)
class Bench:
    """What all models on the same images share.

    Attributes:
        originals: what was measured of the images alone.
    """

    originals: Originals
    networks: Networks
    device: torch.device
    settings: Settings
    observer: Observer

    def progress(self, text: str) -> Progress:
        """Shows (done, total) under `text`."""
        return lambda done, total: self.observer.phase(text, done, total)

    def told(self, text: str) -> None:
        """Shows that something is under way that cannot be counted."""
        self.observer.phase(text, 0, None)


def set_up(pictures: Pictures, device: torch.device, settings: Settings, observer: Observer) -> Bench:
    """Load the networks there are, and look at the images once."""
    networks = at_hand(pictures.size, device, settings.skip, settings.inception, observer.notice)

    def shown(done: int, total: int) -> None:
        observer.phase("looking at the images", done, total)

    return Bench(seeing.look_at_originals(pictures, networks, device, shown), networks, device, settings, observer)


def measure(model: VAE, densities: Sequence[LatentDensity], bench: Bench, label: str = "") -> list[Figure]:
    """All figures of a model on its device; groups that are skipped give none.

    Args:
        densities: what new pictures are drawn from, one after the other.
        label: e.g. `, raw weights`: ends the lines of progress.
    """
    settings, pictures, skip = bench.settings, bench.originals.pictures, bench.settings.skip
    text = f"reconstructing the images{label}"
    seen = seeing.look(model, pictures, bench.networks, bench.device, settings, bench.progress(text))
    figures: list[Figure] = []
    if Group.RECONSTRUCTION not in skip:
        figures += of_images.of_reconstructions(seen, bench.originals, bench.networks, settings.seed, bench.told)
    if Group.LATENTS not in skip:
        bench.told(f"the latents{label}")
        figures += of_images.of_latents(seen.posterior(), settings.seed)
    if Group.LIKELIHOOD not in skip:
        text = f"the likelihood, {settings.draws} latents an image{label}"
        count = min(LIKELIHOOD_IMAGES, pictures.count)
        draws = seeing.draw_latents(model, pictures, count, bench.device, settings, bench.progress(text))
        figures += of_images.of_likelihood(draws, pictures.size, settings.seed)
    for density in densities if Group.SAMPLES not in skip else ():
        shown = bench.progress(f"drawing new pictures from {density.describe()}{label}")
        figures += of_samples.of_samples(model, density, bench.originals, bench.networks, settings, shown, bench.told)
    if Group.FACTORS not in skip:
        means = seen.column("mean").double().numpy()
        figures += of_factors.of_factors(means, pictures.factors(), settings.seed, bench.observer.phase)
    return figures


def densities_of(subject: Subject, observer: Observer) -> list[LatentDensity]:
    """N(0, I), and the density that was fitted to these very weights, where there is one."""
    found: list[LatentDensity] = [NormalDensity(subject.model.latents)]
    fitted = subject.model.density
    if fitted.kind == "normal":
        so = "So samples are drawn from N(0, I) alone."
        finished = finished_model_or_notice(subject, observer.notice, so)
        fitted = fitted if finished is None else finished.content.model.density
    return found if fitted.kind == "normal" else [*found, fitted]
