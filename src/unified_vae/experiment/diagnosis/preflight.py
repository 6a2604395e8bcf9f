"""The pre-flight: what linear theory says about a run before its first step (docs/objective.md).

A PCA of the training images gives the spectrum. With beta and the number of latents it predicts how many units
will be active, the KL and the PSNR; it is also where a model with a linear path starts from. Where the images are too
few for as many principal components as latents, DCT components complete them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unified_vae.analysis.pca import extract_patches, patch_components, principal_components
from unified_vae.config.loss import Capacity, Geco, KLConfig
from unified_vae.config.model import SpatialConfig
from unified_vae.config.run import RunConfig
from unified_vae.core.errors import CheckpointError, ConfigError
from unified_vae.core.linear_gaussian import LinearVAE, Spectrum, optimum
from unified_vae.core.principal_components import PrincipalComponents, compose, project
from unified_vae.data.batches import validation_batches
from unified_vae.data.dataset import DataSets, PackedSplit
from unified_vae.metrics.images import psnr
from unified_vae.models.vae import VAE

USUAL_COUNTS = (16, 32, 64, 128, 256, 512, 1024)
LEAST_FOR_ADVICE, MOST_FOR_ADVICE = 32, 512  # components looked at, to say what more latents would bring
PIECE_VALUES = 250 * 3 * 64 * 64  # of validation images looked at in one piece
FEW = 0.5  # part of the units below which a run counts as collapsed
WORTH = 0.5  # dB that more latents have to promise to be mentioned
SEARCHED_BETAS = (1e-6, 1e6)


@dataclass(frozen=True)
class Preflight:
    """What is known before the first step, in plain numbers: kept in the run's record and in preflight.json.

    Attributes:
        dimensions: D, pixel values per image.
        latents: of the model.
        eigenvalues: variances of the components, descending, squared pixel values summed over an image; of a model with
            a map of latents, those of one position's patch of the image. Of held-out training images where DCT
            components complete the principal ones, else of the training images.
        rest: variance of an image beyond them.
        images: images and augmented versions that these are of.
        validation_variances: the same variances, of the validation images along the same components.
        validation_total: mean squared distance of the validation images from the mean training image.
        psnr_by_components: dB of so many components on the validation images.
        seconds: that this took.
        positions: of the latent map, at each of which the components are the same; 1 for a latent vector.
        setting: what sets the number of latents at a position.
        dct_components: how many of the model's components are DCT components, for want of images.
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
    dct_components: int = 0

    @property
    def spectrum(self) -> Spectrum:
        """Variances of all components of an image, descending: of each position in turn."""
        return np.repeat(np.array(self.eigenvalues), self.positions)

    @property
    def psnr_pca(self) -> float | None:
        """dB of as many components as there are latents; None where the images have too few."""
        return self.psnr_by_components.get(str(self.latents))

    def linear(self, beta: float) -> LinearVAE:
        """The optimal linear VAE with these latents."""
        spectrum = self.spectrum
        beyond = self.rest + float(spectrum[self.latents :].sum())
        return optimum(spectrum[: self.latents], beyond, self.dimensions, beta)

    def validation_psnr(self, linear: LinearVAE) -> float:
        """dB of decoded posterior means of a linear VAE on the validation images."""
        inside = np.repeat(np.array(self.validation_variances), self.positions)[: self.latents]
        explained = float((inside * (1 - linear.posterior_variances**2)).sum())
        return psnr((self.validation_total - explained) / self.dimensions)

    def largest_beta(self) -> float:
        """The beta up to which at least half of the units are predicted to stay active."""
        return largest_beta_where(lambda beta: self.linear(beta).active_units >= self.half())

    def planned_beta(self, kl: KLConfig) -> float:
        """The beta whose optimum a run heads for: the weight, or where a capacity holds the rate, the lower beta
        that leads to this rate by itself."""
        if not isinstance(kl.constraint, Capacity):
            return kl.weight
        nats = kl.constraint.capacity
        return min(kl.weight, largest_beta_where(lambda beta: self.linear(beta).rate >= nats))

    def effective_beta(self, kl: KLConfig, last: float | None) -> float:
        """The price of a nat that a run came to: with GECO its `last` one, else as planned."""
        return last if isinstance(kl.constraint, Geco) and last is not None else self.planned_beta(kl)

    def half(self) -> float:
        """Units below which a run counts as collapsed: half of those that the images can use at all."""
        return FEW * min(self.latents, len(self.eigenvalues) * self.positions)

    def set_latents(self, count: int) -> str:
        """The words that give a model so many latents, or as few more as can be."""
        return f"--set {self.setting}={math.ceil(count / self.positions)}"

    def to_json(self, beta: float) -> dict[str, Any]:
        """Plain values, with the prediction at `beta`."""
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
        """The inverse of `to_json`.

        Raises:
            CheckpointError: an entry is missing.
        """
        try:
            # what records of earlier versions leave out
            later = {"positions": 1, "setting": "model.latents", "dct_components": 0}
            known = {name: {**later, **content}[name] for name in cls.__dataclass_fields__}
            tuples = {name: tuple(known[name]) for name in ("eigenvalues", "validation_variances")}
        except (KeyError, TypeError) as problem:
            raise CheckpointError(
                f"what the run says of its images was written by another version of unified-vae ({problem}). Continue "
                "it with that one, or start afresh with --no-resume (the old run is moved aside, not deleted)."
            ) from problem
        return cls(**{**known, **tuples})


def fly(config: RunConfig, data: DataSets, device: torch.device) -> tuple[Preflight, PrincipalComponents]:
    """Look at the spectrum of the training images, and at what it is worth on the validation images.

    Args:
        device: where a GPU can do the sums; anything but CUDA uses the CPU.
    """
    begun = time.monotonic()
    model, positions = config.model, config.model.positions
    place = device if device.type == "cuda" else torch.device("cpu")
    side, basis = _components(config, data, place)
    known, latents = len(basis.eigenvalues), model.latents // positions
    counts = sorted({number for number in (*USUAL_COUNTS, latents, 2 * latents) if number <= known})
    measured = _on_validation(basis.to(place), data.validation, counts, place, side)
    flight = Preflight(
        dimensions=data.channels * model.image_size**2,
        latents=model.latents,
        eigenvalues=tuple(map(float, basis.eigenvalues)),
        rest=positions * basis.rest(known),
        images=basis.images,
        validation_variances=tuple((measured.squares * basis.covered).tolist()),
        validation_total=positions * measured.total,
        psnr_by_components={str(positions * count): psnr(measured.clipped[count]) for count in counts},
        seconds=time.monotonic() - begun,
        positions=positions,
        setting=model.latents_setting,
        dct_components=basis.dct,
    )
    return flight, basis


def _components(config: RunConfig, data: DataSets, device: torch.device) -> tuple[int, PrincipalComponents]:
    """The side of what is looked at, the whole image or a position's patch of it, and the components."""
    model, augmentation = config.model, config.data.augment
    if isinstance(model, SpatialConfig):
        side, count = model.downsample_factor, max(2 * model.latent_channels, LEAST_FOR_ADVICE)
        return side, patch_components(data.train, side, count, augmentation, config.seed, device)
    count = max(model.latents, min(max(2 * model.latents, LEAST_FOR_ADVICE), MOST_FOR_ADVICE))
    return model.image_size, principal_components(data.train, count, augmentation, config.seed, device, model.latents)


def largest_beta_where(holds: Callable[[float], bool]) -> float:
    """The largest beta at which a condition holds that fails above some beta."""
    low, high = SEARCHED_BETAS
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


@dataclass
class _Measured:
    """Means over the validation images.

    Attributes:
        squares: [count], squared coordinates.
        total: squared distance from the mean image.
        clipped: components -> mean squared error per value of the clipped linear reconstruction.
    """

    squares: Tensor
    total: float
    clipped: dict[int, float]


def _on_validation(
    basis: PrincipalComponents, split: PackedSplit, counts: Sequence[int], device: torch.device, side: int
) -> _Measured:
    """What the components do on the images, or on their patches of `side` pixels, one by one."""
    measured = _Measured(torch.zeros(len(basis.eigenvalues), dtype=torch.float64), 0.0, dict.fromkeys(counts, 0.0))
    for raw in validation_batches(split, batch_size=max(1, PIECE_VALUES // math.prod(split.images.shape[1:]))):
        images, share = raw.to(device).float() / 255, len(raw) / len(split)
        images = images if side == images.shape[-1] else extract_patches(images, side)
        coordinates = project(images, basis)
        measured.squares += share * coordinates.double().square().mean(0).cpu()
        away = images - compose(coordinates[:, :0], basis, images.shape[-1])
        measured.total += share * float(away.square().flatten(1).sum(1).mean())
        for count in counts:
            linear = compose(coordinates[:, :count], basis, images.shape[-1]).clamp(0, 1)
            measured.clipped[count] += share * float((linear - images).square().mean())
    return measured


def start_at_pca(models: Sequence[VAE], basis: PrincipalComponents, flight: Preflight, config: RunConfig) -> None:
    """Make the models with a linear path the optimal linear VAE; the others are left as they are."""
    for model in models:
        if model.linear is not None:
            model.start_at(basis, flight.linear(flight.planned_beta(config.loss.kl)))


def refuse_or_warn(flight: Preflight, beta: float, strict: bool, in_nats: str = "") -> str | None:
    """The warning where collapse is predicted, None where it is not.

    Args:
        in_nats: the words that make an advised `--beta` one in nats, where it would be read as another trainer's.

    Raises:
        ConfigError: it is predicted, and `preflight` is `strict`.
    """
    linear = flight.linear(beta)
    if linear.active_units >= flight.half():
        return None
    if not any(value > 0 for value in flight.eigenvalues):
        words = "posterior collapse is predicted: the training images do not differ from one another"
        if strict:
            raise ConfigError(f"{words}. Give other images; preflight=strict refuses these.")
        return f"{words}. Give other images."
    advice = (
        f"--beta {flight.largest_beta():.3g} or less{in_nats}, or {flight.set_latents(max(linear.active_units, 1))}"
    )
    words = (
        f"posterior collapse is predicted: at beta {beta:g} only {linear.active_units} of {flight.latents} units "
        f"would carry anything on these images. Give {advice}"
    )
    if strict:
        raise ConfigError(f"{words} (preflight=strict).")
    return f"{words}."


def lines(flight: Preflight, beta: float) -> list[tuple[str, str]]:
    """(label, text) facts to print before step 0."""
    linear = flight.linear(beta)
    active = f"{linear.active_units} of {flight.latents} units active, KL {linear.rate:z.0f} nats"
    psnr_text = f"{flight.validation_psnr(linear):.1f} dB"
    source = f"linear theory on {flight.images:,} training images, {flight.seconds:.0f} s"
    facts = [("predicted", f"{active}, {psnr_text} or more at beta {beta:g} ({source})")]
    if flight.psnr_pca is not None and flight.dct_components:
        supported = flight.latents - flight.dct_components
        text = f"the training images support {supported or 'no'} principal components, DCT components replace the other"
        line = f"{flight.psnr_pca:.2f} dB on the validation images: {text} {flight.dct_components}"
        facts.append(("PCA line", line))
    elif flight.psnr_pca is not None:
        facts.append(("PCA line", f"{flight.psnr_pca:.2f} dB: a PCA of {_what(flight)} on the validation images"))
    if advice := latents_advice(flight, beta):
        facts.append(("latents", advice))
    return facts


def _what(flight: Preflight) -> str:
    """What a PCA is of, with its number of components."""
    if flight.positions == 1:
        return str(flight.latents)
    count = flight.latents // flight.positions
    return f"{count} for each of the {flight.positions} patches of an image (as all patches share them),"


def latents_advice(flight: Preflight, beta: float) -> str:
    """A better number of latents, in words; empty where this one is good."""
    linear = flight.linear(beta)
    if linear.active_units == 0:
        return ""  # collapse is predicted, and told with what to do
    if linear.active_units < flight.latents:
        return f"{linear.active_units} are enough at this beta: the others would carry nothing linear"
    known = {int(count): value for count, value in flight.psnr_by_components.items()}
    more = [count for count in known if count > flight.latents]
    if not more or flight.psnr_pca is None or known[max(more)] < flight.psnr_pca + WORTH:
        return ""
    gain = known[max(more)] - flight.psnr_pca
    return f"{max(more)} would be worth {gain:+.1f} dB more to a linear model ({flight.set_latents(max(more))})"
