"""From a cause to the one command to run next. No torch here.

A cure that keeps what was learned goes on in the run's folder or beside it (`resume_fix`); one that changes the
model or beta trains anew beside the run (`RUN-again`). No command spoils the run that was diagnosed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from unified_vae.config.loss import Capacity, Geco, RateConstraint
from unified_vae.config.run import RunConfig
from unified_vae.core.shell import uv_run
from unified_vae.experiment.diagnosis import cause as causes
from unified_vae.experiment.diagnosis.cause import PIXELWISE, Diagnosis

LONGER = 2  # times the epochs of a run that still rises
MUCH_LONGER = 10  # times those of one that has hardly begun
FEWEST_EPOCHS = 10
USUAL_BETA, LARGEST_BETA = 4.0, 10.0
ROOM = 0.5  # of a needed component's variance is where a new beta puts the water level
STEP_DB, HIGHEST_DB = 2.0, 58.0  # by which, and up to which, GECO's target is moved
HAARPSI_SIDE = 16  # pixels that haarpsi needs at least
DETAIL_WEIGHTS = {"l1": 0.05, "laplacian": 0.05, "haarpsi": 0.02}  # of the loss preset `sharp`


@dataclass(frozen=True)
class Situation:
    """What a command has to name.

    Attributes:
        config: as resolved.
        run_dir: the run's folder; None for a model without one.
        names: the mode and presets of the run.
        images: training images; None where unknown.
        finished: whether the run took its last step.
    """

    config: RunConfig
    run_dir: Path | None
    names: Mapping[str, str] = field(default_factory=dict)
    images: int | None = None
    finished: bool = True

    @property
    def cured(self) -> bool:
        """Whether the run is a cure itself, so that the same again is no advice."""
        return self.names.get("mode") == "resume_fix"

    def again(self, *words: str) -> str:
        """The same run afresh, with changes."""
        if self.run_dir is not None:
            return uv_run("train_unified.py", "--config", (self.run_dir / "config.json").as_posix(), *words)
        model = self.config.model
        usual = type(model)().model_dump()
        always = ("family", "image_size", "latents", "latent_channels", "downsample_factor", "base_channels")
        changed = [name for name, value in model.model_dump().items() if name in always or value != usual[name]]
        shape = [f"model.{name}={json.dumps(getattr(model, name))}".replace('"', "") for name in changed]
        shape = [text for text in shape if not any(text.split("=")[0] in word for word in words)]
        data = self.config.data.source
        return uv_run("train_unified.py", "--data", data, *(word for text in shape for word in ("--set", text)), *words)

    def further(self, *words: str) -> str:
        """The same run, continued in its folder."""
        folder = () if self.run_dir is None else ("--run-dir", self.run_dir.as_posix())
        return self.again(*folder, *words)

    def fix(self, *words: str) -> str:
        """The cure of the run."""
        assert self.run_dir is not None
        return uv_run("train.py", "--mode", "resume_fix", "--run-dir", self.run_dir.as_posix(), *words)


@dataclass(frozen=True)
class Remedy:
    """What to do, in a sentence, and the command that does it; the command is empty where nothing is to be done."""

    advice: str
    command: str


def remedy(found: Diagnosis, place: Situation) -> Remedy:
    """The one thing to do next."""
    match found.cause:
        case causes.BARELY:
            return _longer(place, MUCH_LONGER, "it has hardly begun: train longer")
        case causes.COLLAPSE:
            return _revive(found, place)
        case causes.OVERFITTED:
            return _generalise(place)
        case causes.UNDERTRAINED:
            return _train(found, place)
        case causes.PARTIAL:
            predicted = found.line is not None and found.line.predicted_active < causes.WEAK * found.needed
            return _lower_beta(found, place) if predicted else _revive(found, place)
        case causes.FEW_LATENTS:
            count = 2 * found.latents if found.line is None else found.line.more
            advice = "more latents: those there are carry all they can"
            model = place.config.model
            words = f"{model.latents_setting}={math.ceil(count / model.positions)}"
            return Remedy(advice, place.again("--set", words))
        case causes.LOSS_BLUR:
            return _sharpen(found, place)
        case causes.MISMATCH:
            return _higher_beta(found, place)
    if place.run_dir is None:
        return Remedy("nothing to mend", "")
    return Remedy("nothing to mend: see the curves", uv_run("tensorboard", "--logdir", f"{place.run_dir}/tensorboard"))


def _longer(place: Situation, times: int, advice: str) -> Remedy:
    if not place.finished:
        return Remedy("the run is not over: let it go on, or continue it", place.further())
    training = place.config.training
    words = ["--epochs", str(max(times * training.epochs, FEWEST_EPOCHS))]
    if training.max_steps is not None:
        words += ["--set", f"training.max_steps={times * training.max_steps}"]
    return Remedy(advice, place.further(*words))


def _train(found: Diagnosis, place: Situation) -> Remedy:
    """More steps where they help; a run at rest below what a linear map reaches needs another start or more room."""
    if found.rising:
        return _longer(place, LONGER, "it still rises: train longer")
    if found.history is not None and found.gain is None:
        return _longer(place, MUCH_LONGER, "it has hardly begun: train longer")
    model = place.config.model
    if not getattr(model, "pca_init", True):
        return Remedy("start it at the PCA it lies below", place.again("--set", "model.pca_init=true"))
    width = 2 * model.base_channels
    return Remedy("at rest below a linear map: a wider network", place.again("--set", f"model.base_channels={width}"))


def _revive(found: Diagnosis, place: Situation) -> Remedy:
    if place.cured or place.run_dir is None:
        return _lower_beta(found, place)
    return Remedy("revive the idle units: beta warmed up again from 0, fresh weights for them", place.fix())


def _lower_beta(found: Diagnosis, place: Situation) -> Remedy:
    """A beta whose water level lies under the components that are needed."""
    if held := _loosened(place.config.loss.kl.constraint):
        return Remedy("less of a bound on the rate: at this one the units are not worth their nats", place.again(*held))
    beta = found.beta if found.beta is not None else place.config.loss.kl.weight
    new = beta / 4
    if found.line is not None and found.sigma and len(found.line.eigenvalues) >= found.needed:
        new = min(beta / 2, ROOM * found.line.eigenvalues[found.needed - 1] / found.sigma**2)
    return Remedy("lower beta: at this one the units are not worth their nats", place.again("--beta", _two_digits(new)))


def _generalise(place: Situation) -> Remedy:
    """More images, else more from each, else less of a network to learn them by heart."""
    data = place.config.data
    if data.max_images is not None and (place.images is None or place.images >= data.max_images):
        return Remedy("train on all images, not a part", place.again("--set", "data.max_images=null"))
    if not data.augment.horizontal_flip:
        advice = "more images; mirrored ones count where left and right may be exchanged"
        return Remedy(advice, place.again("--set", "data.augment.horizontal_flip=true"))
    width = max(4, place.config.model.base_channels // 8 * 4)
    if width >= place.config.model.base_channels:
        return Remedy("more images: the network is as narrow as it can be", "")
    advice = "more images; failing that, a narrower network"
    return Remedy(advice, place.again("--set", f"model.base_channels={width}"))


def _sharpen(found: Diagnosis, place: Situation) -> Remedy:
    """Terms that compare detail: in a cure while pixel errors rule, else anew with more weight on them."""
    loss, size = place.config.loss, place.config.model.image_size
    if place.run_dir is not None and not place.cured and (found.pixel_share is None or found.pixel_share >= PIXELWISE):
        weight = max(DETAIL_WEIGHTS["laplacian"], loss.laplacian.weight)
        return Remedy("a loss that compares detail", place.fix("--set", f"loss.laplacian.weight={weight:g}"))
    words = []
    for name, least in DETAIL_WEIGHTS.items():
        if name != "haarpsi" or size >= HAARPSI_SIDE:
            weight = getattr(loss, name).weight
            words += ["--set", f"loss.{name}.weight={max(least, weight if name == 'l1' else 2 * weight):g}"]
    return Remedy("more weight on the terms that compare detail", place.again(*words))


def _loosened(constraint: RateConstraint) -> list[str]:
    """Words that let the rate be higher where a constraint decides on it and not beta; empty where beta does."""
    match constraint:
        case Capacity(capacity=nats):
            return ["--set", f"loss.kl.constraint.capacity={2 * nats:g}"]
        case Geco(psnr=psnr):
            return ["--set", f"loss.kl.constraint.psnr={min(psnr + STEP_DB, HIGHEST_DB):g}"]
        case _:
            return []


def _tightened(constraint: RateConstraint) -> list[str]:
    """The opposite of `_loosened`."""
    match constraint:
        case Capacity(capacity=nats):
            start = min(constraint.initial_capacity, nats / 2)
            words = ["--set", f"loss.kl.constraint.capacity={nats / 2:g}"]
            lower = ["--set", f"loss.kl.constraint.initial_capacity={start:g}"] if constraint.initial_capacity else []
            return [*words, *lower]
        case Geco(psnr=psnr):
            return ["--set", f"loss.kl.constraint.psnr={max(psnr - STEP_DB, 1.0):g}"]
        case _:
            return []


def _higher_beta(found: Diagnosis, place: Situation) -> Remedy:
    if held := _tightened(place.config.loss.kl.constraint):
        return Remedy("a lower rate draws the latents towards N(0, I)", place.again(*held))
    beta = found.beta if found.beta is not None else place.config.loss.kl.weight
    if beta < LARGEST_BETA:
        new = min(max(USUAL_BETA, 2 * beta), LARGEST_BETA)
        advice = "a higher beta draws the latents towards N(0, I)"
        return Remedy(advice, place.again("--beta", _two_digits(new)))
    advice = "beta is high already: fewer latents leave less room between the images"
    model = place.config.model
    before, fewer = model.latents // model.positions, found.latents // 2 // model.positions
    command = place.again("--set", f"{model.latents_setting}={fewer}") if 0 < fewer < before else ""
    return Remedy(advice, command)


def _two_digits(value: float) -> str:
    """Rounded down, so that a bound is kept."""
    if value <= 0:
        return "0"
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{math.floor(value / unit) * unit:.3g}"
