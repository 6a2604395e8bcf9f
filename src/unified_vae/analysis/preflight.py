"""The preflight: what linear theory says about a run before its first step (docs/objective.md).

A PCA of the training images gives the spectrum. With beta and the number of latents it predicts how many units
will be active, the KL and the PSNR; it is also where a model with a PCA skip starts from. Where the images are few, the
PCA is of a shrunk covariance (analysis/shrinkage.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from unified_vae.analysis.pca import extract_patches, patch_components, principal_components
from unified_vae.config.loss import Capacity, Geco, KLConfig
from unified_vae.config.model import SpatialConfig
from unified_vae.config.run import RunConfig
from unified_vae.core.errors import CheckpointError, ConfigError
from unified_vae.core.linear_vae import LinearVAE, PrincipalComponents, Spectrum, compose, optimum, project
from unified_vae.data.batches import validation_batches
from unified_vae.data.dataset import DataSets
from unified_vae.metrics.images import psnr
from unified_vae.models.vae import VAE

USUAL_COUNTS = (16, 32, 64, 128, 256, 512, 1024)
MIN_COMPONENTS, MAX_COMPONENTS = 32, 512  # that are computed, to say what more latents would bring
CHUNK_VALUES = 250 * 3 * 64 * 64  # of validation images at a time
MIN_ACTIVE = 0.5  # fraction of the units below which a run counts as collapsed
WORTH = 0.5  # dB that more latents have to promise to be mentioned
SEARCHED_BETAS = (1e-6, 1e6)


@dataclass(frozen=True)
class Preflight:
    """What linear theory says before the first step: kept in the run's record and in preflight.json.

    Attributes:
        dimensions: D, pixel values per image.
        latents: of the model.
        eigenvalues: variances of the components, descending, squared pixel values summed over an image; of a model with
            a map of latents, those of one position's patch of the image. Scaled to those of held-out training
            images where the images are few.
        rest: variance of an image beyond them.
        images: images and augmented versions that these are of.
        validation_variances: the same variances, of the validation images along the same components.
        validation_total: mean squared distance of the validation images from the mean training image.
        psnr_by_components: dB of so many components on the validation images.
        seconds: how long this took.
        positions: of the latent map, at each of which the components are the same; 1 for a latent vector.
        setting: what sets the number of latents at a position.
        covariance_weights: of few images, those of the covariances that were mixed; empty for a PCA.
    """

    dimensions: int
    latents: int
    eigenvalues: tuple[float, ...]
    rest: float
    images: int
    validation_variances: tuple[float, ...]
    validation_total: float
    psnr_by_components: Mapping[str, float]
    seconds: float
    positions: int = 1
    setting: str = "model.latents"
    covariance_weights: tuple[float, ...] = ()

    @property
    def spectrum(self) -> Spectrum:
        """Variances of all components of an image, descending: of each position in turn."""
        return np.repeat(np.array(self.eigenvalues), self.positions)

    @property
    def psnr_pca(self) -> float | None:
        """dB of as many components as there are latents; None where the images have too few."""
        return self.psnr_by_components.get(str(self.latents))

    def linear(self, beta: float) -> LinearVAE:
        """Return the optimal linear VAE with these latents."""
        spectrum = self.spectrum
        beyond = self.rest + float(spectrum[self.latents :].sum())
        return optimum(spectrum[: self.latents], beyond, self.dimensions, beta)

    def validation_psnr(self, linear: LinearVAE) -> float:
        """Return the dB of decoded posterior means of a linear VAE on the validation images."""
        inside = np.repeat(np.array(self.validation_variances), self.positions)[: self.latents]
        explained = float((inside * (1 - linear.posterior_variances**2)).sum())
        return psnr((self.validation_total - explained) / self.dimensions)

    def largest_beta(self) -> float:
        """Return the beta up to which at least half of the units are predicted to stay active."""
        return largest_beta_where(lambda beta: self.linear(beta).active_units >= self.min_active_units())

    def planned_beta(self, kl: KLConfig) -> float:
        """Return the beta whose optimum a run heads for: the weight, or where a capacity holds the KL, the lower beta
        that leads to this KL by itself."""
        if not isinstance(kl.constraint, Capacity):
            return kl.weight
        nats = kl.constraint.capacity
        return min(kl.weight, largest_beta_where(lambda beta: self.linear(beta).rate >= nats))

    def effective_beta(self, kl: KLConfig, last: float | None) -> float:
        """Return the beta that a run came to: with GECO its `last` one, else as planned."""
        return last if isinstance(kl.constraint, Geco) and last is not None else self.planned_beta(kl)

    def min_active_units(self) -> float:
        """Return the units below which a run counts as collapsed: half of those that the images can use at all."""
        return MIN_ACTIVE * min(self.latents, len(self.eigenvalues) * self.positions)

    def latents_option(self, count: int) -> str:
        """Return the option that gives a model so many latents, or as few more as can be."""
        return f"--set {self.setting}={math.ceil(count / self.positions)}"

    def to_json(self, beta: float) -> dict[str, Any]:
        """Return plain values, with the prediction at `beta`."""
        linear = self.linear(beta)
        predicted = {
            "beta": beta,
            "active_units": linear.active_units,
            "rate": linear.rate,
            "psnr": self.validation_psnr(linear),
            "sigma": linear.sigma,
        }
        return {**asdict(self), "psnr_pca": self.psnr_pca, "predicted": predicted}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Preflight:
        """Read what `to_json` gives.

        Raises:
            CheckpointError: an entry is missing.
        """
        try:
            # what records of earlier versions leave out
            later = {"positions": 1, "setting": "model.latents", "covariance_weights": ()}
            known = {name: {**later, **content}[name] for name in cls.__dataclass_fields__}
            arrays = ("eigenvalues", "validation_variances", "covariance_weights")
            tuples = {name: tuple(known[name]) for name in arrays}
        except (KeyError, TypeError) as problem:
            raise CheckpointError(
                f"what the run says of its images was written by another version of unified-vae ({problem}). Continue "
                "it with that one, or start afresh with --no-resume (the old run is moved aside, not deleted)."
            ) from problem
        return cls(**{**known, **tuples})


def run_preflight(config: RunConfig, data: DataSets, device: torch.device) -> tuple[Preflight, PrincipalComponents]:
    """Compute the spectrum of the training images, and what its components are worth on the validation images.

    Args:
        device: where a GPU can do the sums; anything but CUDA uses the CPU.
    """
    start, model, positions = time.monotonic(), config.model, config.model.positions
    device = device if device.type == "cuda" else torch.device("cpu")

    # the components: of the whole image, or of the patch of it that a position of a latent map sees
    latents, side = model.latents // positions, model.image_size
    augmentation = config.data.augment.resolve(len(data.train), model.latents, data.channels)
    if isinstance(model, SpatialConfig):
        side, count = model.downsample_factor, max(2 * latents, MIN_COMPONENTS)
        basis = patch_components(data.train, side, count, augmentation, config.seed, device)
    else:
        count = max(latents, min(max(2 * latents, MIN_COMPONENTS), MAX_COMPONENTS))
        basis = principal_components(data.train, count, augmentation, config.seed, device, latents)
    known = len(basis.eigenvalues)
    counts = sorted({count for count in (*USUAL_COUNTS, latents, 2 * latents) if count <= known})

    # means over the validation images: squared coordinates [known], squared distance from the mean image, and the
    # squared error per value of the clipped linear reconstruction from so many components
    squares, total, errors = torch.zeros(known, dtype=torch.float64), 0.0, dict.fromkeys(counts, 0.0)
    on_device, split = basis.to(device), data.validation
    for raw in validation_batches(split, batch_size=max(1, CHUNK_VALUES // math.prod(split.images.shape[1:]))):
        images, weight = raw.to(device).float() / 255, len(raw) / len(split)
        images = images if side == images.shape[-1] else extract_patches(images, side)
        coordinates = project(images, on_device)
        squares += weight * coordinates.double().square().mean(0).cpu()
        centered = images - compose(coordinates[:, :0], on_device, side)
        total += weight * float(centered.square().flatten(1).sum(1).mean())
        for count in counts:
            linear = compose(coordinates[:, :count], on_device, side).clamp(0, 1)
            errors[count] += weight * float((linear - images).square().mean())
    preflight = Preflight(
        dimensions=data.channels * model.image_size**2,
        latents=model.latents,
        eigenvalues=tuple(map(float, basis.eigenvalues)),
        rest=positions * basis.rest(known),
        images=basis.images,
        validation_variances=tuple((squares * basis.covered).tolist()),
        validation_total=positions * total,
        psnr_by_components={str(positions * count): psnr(errors[count]) for count in counts},
        seconds=time.monotonic() - start,
        positions=positions,
        setting=model.latents_setting,
        covariance_weights=basis.weights,
    )
    return preflight, basis


def largest_beta_where(holds: Callable[[float], bool]) -> float:
    """Return the largest beta at which a condition holds that fails above some beta."""
    low, high = SEARCHED_BETAS
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def init_from_pca(models: Sequence[VAE], basis: PrincipalComponents, preflight: Preflight, config: RunConfig) -> None:
    """Make the models with a PCA skip the optimal linear VAE; the others are left as they are."""
    for model in models:
        if model.pca_skip is not None:
            model.init_from_pca(basis, preflight.linear(preflight.planned_beta(config.loss.kl)))


def check_collapse_risk(preflight: Preflight, beta: float, strict: bool, in_nats: str = "") -> str | None:
    """Return a warning where collapse is predicted, None where it is not.

    Args:
        in_nats: what makes an advised `--beta` one in nats, where it would be read in another trainer's convention.

    Raises:
        ConfigError: it is predicted, and `preflight` is `strict`.
    """
    linear = preflight.linear(beta)
    if linear.active_units >= preflight.min_active_units():
        return None
    if not any(value > 0 for value in preflight.eigenvalues):
        text = "posterior collapse is predicted: the training images do not differ from one another"
        if strict:
            raise ConfigError(f"{text}. Give other images; preflight=strict refuses these.")
        return f"{text}. Give other images."
    latents = preflight.latents_option(max(linear.active_units, 1))
    text = (
        f"posterior collapse is predicted: at beta {beta:g} only {linear.active_units} of {preflight.latents} units "
        f"would carry anything on these images. Give --beta {preflight.largest_beta():.3g} or less{in_nats}, or "
        f"{latents}"
    )
    if strict:
        raise ConfigError(f"{text} (preflight=strict).")
    return f"{text}."


def preflight_facts(preflight: Preflight, beta: float) -> list[tuple[str, str]]:
    """Return (label, text) facts to print before step 0."""
    linear, latents = preflight.linear(beta), preflight.latents
    active = f"{linear.active_units} of {latents} units active, KL {linear.rate:z.0f} nats"
    reached = f"{preflight.validation_psnr(linear):.1f} dB"
    source = f"linear theory on {preflight.images:,} training images, {preflight.seconds:.0f} s"
    facts = [("predicted", f"{active}, {reached} or more at beta {beta:g} ({source})")]
    if preflight.psnr_pca is not None and preflight.covariance_weights:
        source = f"{preflight.images:,} images, shifted and scaled copies of them, and a smooth spectrum"
        line = f"{preflight.psnr_pca:.2f} dB on the validation images: {latents} components of {source}"
        facts.append(("PCA line", line))
    elif preflight.psnr_pca is not None:
        components = str(latents)
        if preflight.positions > 1:
            count = latents // preflight.positions
            components = (
                f"{count} for each of the {preflight.positions} patches of an image (as all patches share them),"
            )
        facts.append(("PCA line", f"{preflight.psnr_pca:.2f} dB: a PCA of {components} on the validation images"))
    if advice := latents_advice(preflight, beta):
        facts.append(("latents", advice))
    return facts


def latents_advice(preflight: Preflight, beta: float) -> str:
    """Return a better number of latents, in words; empty where this one is good."""
    linear = preflight.linear(beta)
    if linear.active_units == 0:
        return ""  # collapse is predicted, with its own advice
    if linear.active_units < preflight.latents:
        return f"{linear.active_units} are enough at this beta: the others would carry nothing linear"
    known = {int(count): value for count, value in preflight.psnr_by_components.items()}
    most = max((count for count in known if count > preflight.latents), default=None)
    if most is None or preflight.psnr_pca is None or known[most] < preflight.psnr_pca + WORTH:
        return ""
    gain = known[most] - preflight.psnr_pca
    return f"{most} would be worth {gain:+.1f} dB more to a linear model ({preflight.latents_option(most)})"
