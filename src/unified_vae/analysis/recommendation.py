"""From a diagnosis to the one command to run next. No torch.

A repair that keeps what was learned continues in the run's folder or beside it (`resume_fix`); one that changes the
model or beta trains anew beside the run (`RUN-again`). No command spoils the run that was diagnosed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from unified_vae.analysis import diagnosis as causes
from unified_vae.analysis.diagnosis import PARTLY_COLLAPSED, PIXELWISE, Diagnosis
from unified_vae.config.data import SHIFT
from unified_vae.config.loss import Capacity, Geco
from unified_vae.config.run import RunConfig
from unified_vae.core.errors import uv_run

LONGER = 2  # times the epochs of a run that still rises
MUCH_LONGER = 10  # times those of one that has hardly begun
MIN_EPOCHS = 10
USUAL_BETA, MAX_BETA = 4.0, 10.0
ROOM = 0.5  # of a needed component's variance is where a new beta puts the water level
PSNR_STEP, MAX_PSNR = 2.0, 58.0  # dB by which, and up to which, GECO's target is moved
HAARPSI_SIDE = 16  # pixels that haarpsi needs at least
DETAIL_WEIGHTS = {"l1": 0.05, "laplacian": 0.05, "haarpsi": 0.02}  # of the loss preset `sharp`


@dataclass(frozen=True)
class RunContext:
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
    def can_be_repaired(self) -> bool:
        """Whether `resume_fix` is worth trying: there is a run, which is no repair itself."""
        return self.run_dir is not None and self.names.get("mode") != "resume_fix"

    def train_again(self, *options: str) -> str:
        """Return the command that trains the same run afresh, with changes."""
        if self.run_dir is not None:
            return uv_run("train_unified.py", "--config", (self.run_dir / "config.json").as_posix(), *options)
        model = self.config.model
        defaults = type(model)().model_dump()
        always = ("family", "image_size", "latents", "latent_channels", "downsample_factor", "base_channels")
        changed = [name for name, value in model.model_dump().items() if name in always or value != defaults[name]]
        shape = [f"model.{name}={json.dumps(getattr(model, name))}".replace('"', "") for name in changed]
        shape = [text for text in shape if not any(text.split("=")[0] in option for option in options)]
        data = self.config.data.source
        return uv_run(
            "train_unified.py", "--data", data, *(word for text in shape for word in ("--set", text)), *options
        )

    def train_on(self, *options: str) -> str:
        """Return the command that continues the same run in its folder."""
        folder = () if self.run_dir is None else ("--run-dir", self.run_dir.as_posix())
        return self.train_again(*folder, *options)

    def repair(self, *options: str) -> str:
        """Return the command that repairs the run."""
        assert self.run_dir is not None
        return uv_run("train.py", "--mode", "resume_fix", "--run-dir", self.run_dir.as_posix(), *options)


@dataclass(frozen=True)
class Recommendation:
    """What to do, in a sentence, and the command that does it; the command is empty where nothing is to be done."""

    advice: str
    command: str


def recommend(model: Diagnosis, run: RunContext) -> Recommendation:
    """Return the one thing to do next."""
    settings = run.config.model
    match model.cause:
        case causes.BARELY:
            return _train_longer(run, MUCH_LONGER, "it has hardly begun: train longer")
        case causes.COLLAPSE:
            return _revive(model, run)
        case causes.OVERFITTED:
            return _generalize(run)
        case causes.UNDERTRAINED if model.is_rising:
            return _train_longer(run, LONGER, "it still rises: train longer")
        case causes.UNDERTRAINED if model.history is not None and model.gain is None:
            return _train_longer(run, MUCH_LONGER, "it has hardly begun: train longer")
        # a converged run below what a linear map reaches needs another start or more room
        case causes.UNDERTRAINED if not getattr(settings, "pca_init", True):
            command = run.train_again("--set", "model.pca_init=true")
            return Recommendation("start from the PCA it lies below", command)
        case causes.UNDERTRAINED:
            command = run.train_again("--set", f"model.base_channels={2 * settings.base_channels}")
            return Recommendation("converged below a linear map: use a wider network", command)
        case causes.PARTIAL:
            expected = model.line is not None and (model.line.predicted_active < PARTLY_COLLAPSED * model.needed_units)
            return _lower_beta(model, run) if expected else _revive(model, run)
        case causes.FEW_LATENTS:
            count = 2 * model.latents if model.line is None else model.line.more
            option = f"{settings.latents_setting}={math.ceil(count / settings.positions)}"
            advice = "use more latents: the present ones carry all they can"
            return Recommendation(advice, run.train_again("--set", option))
        case causes.LOSS_BLUR:
            return _sharpen(model, run)
        case causes.MISMATCH:
            return _raise_beta(model, run)
    if run.run_dir is None:
        return Recommendation("nothing to fix", "")
    command = uv_run("tensorboard", "--logdir", f"{run.run_dir}/tensorboard")
    return Recommendation("nothing to fix: see the curves", command)


def _train_longer(run: RunContext, factor: int, advice: str) -> Recommendation:
    if not run.finished:
        return Recommendation("the run is not finished: let it go on, or continue it", run.train_on())
    training = run.config.training
    options = ["--epochs", str(max(factor * training.epochs, MIN_EPOCHS))]
    if training.max_steps is not None:
        options += ["--set", f"training.max_steps={factor * training.max_steps}"]
    return Recommendation(advice, run.train_on(*options))


def _revive(model: Diagnosis, run: RunContext) -> Recommendation:
    if not run.can_be_repaired:
        return _lower_beta(model, run)
    return Recommendation("revive the idle units: beta warmed up again from 0, fresh weights for them", run.repair())


def _lower_beta(model: Diagnosis, run: RunContext) -> Recommendation:
    """A beta whose water level lies below the components that are needed; a looser constraint where that decides."""
    option = ""
    match run.config.loss.kl.constraint:
        case Capacity(capacity=capacity):
            option = f"loss.kl.constraint.capacity={2 * capacity:g}"
        case Geco(psnr=psnr):
            option = f"loss.kl.constraint.psnr={min(psnr + PSNR_STEP, MAX_PSNR):g}"
    if option:
        advice = "loosen the bound on the KL: at this one the units are not worth their nats"
        return Recommendation(advice, run.train_again("--set", option))
    beta = model.beta if model.beta is not None else run.config.loss.kl.weight
    lower = beta / 4
    if model.line is not None and model.sigma and len(model.line.eigenvalues) >= model.needed_units:
        lower = min(beta / 2, ROOM * model.line.eigenvalues[model.needed_units - 1] / model.sigma**2)
    advice = "lower beta: at this one the units are not worth their nats"
    return Recommendation(advice, run.train_again("--beta", _two_digits(lower)))


def _raise_beta(model: Diagnosis, run: RunContext) -> Recommendation:
    """The opposite; where beta is high already, fewer latents."""
    options: list[str] = []
    constraint = run.config.loss.kl.constraint
    match constraint:
        case Capacity(capacity=capacity):
            options = ["--set", f"loss.kl.constraint.capacity={capacity / 2:g}"]
            if constraint.initial_capacity:
                initial = min(constraint.initial_capacity, capacity / 2)
                options += ["--set", f"loss.kl.constraint.initial_capacity={initial:g}"]
        case Geco(psnr=psnr):
            options = ["--set", f"loss.kl.constraint.psnr={max(psnr - PSNR_STEP, 1.0):g}"]
    if options:
        return Recommendation("a lower KL draws the latents towards N(0, I)", run.train_again(*options))
    beta = model.beta if model.beta is not None else run.config.loss.kl.weight
    if beta < MAX_BETA:
        higher = min(max(USUAL_BETA, 2 * beta), MAX_BETA)
        advice = "a higher beta draws the latents towards N(0, I)"
        return Recommendation(advice, run.train_again("--beta", _two_digits(higher)))
    settings = run.config.model
    before, fewer = settings.latents // settings.positions, model.latents // 2 // settings.positions
    command = run.train_again("--set", f"{settings.latents_setting}={fewer}") if 0 < fewer < before else ""
    return Recommendation("beta is high already: fewer latents leave less room between the images", command)


def _generalize(run: RunContext) -> Recommendation:
    """More images, else more from each, else less of a network to memorize them."""
    data, width = run.config.data, run.config.model.base_channels
    if data.max_images is not None and (run.images is None or run.images >= data.max_images):
        return Recommendation("train on all images", run.train_again("--set", "data.max_images=null"))
    if not data.augment.horizontal_flip:
        advice = "more images; mirrored ones count where left and right may be exchanged"
        return Recommendation(advice, run.train_again("--set", "data.augment.horizontal_flip=true"))
    if not data.augment.affine.translate:
        advice = "more images; each counts as several where it is shifted"
        return Recommendation(advice, run.train_again("--set", f"data.augment.affine.translate={SHIFT}"))
    narrower = max(4, width // 8 * 4)
    if narrower >= width:
        return Recommendation("more images: the network is as narrow as it can be", "")
    advice = "more images; failing that, a narrower network"
    return Recommendation(advice, run.train_again("--set", f"model.base_channels={narrower}"))


def _sharpen(model: Diagnosis, run: RunContext) -> Recommendation:
    """Terms that compare detail: in a repair while pixel errors rule, else anew with more weight on them."""
    loss = run.config.loss
    if run.can_be_repaired and (model.pixel_share is None or model.pixel_share >= PIXELWISE):
        weight = max(DETAIL_WEIGHTS["laplacian"], loss.laplacian.weight)
        return Recommendation("a loss that compares detail", run.repair("--set", f"loss.laplacian.weight={weight:g}"))
    options = []
    for name, minimum in DETAIL_WEIGHTS.items():
        if name != "haarpsi" or run.config.model.image_size >= HAARPSI_SIDE:
            weight = getattr(loss, name).weight
            options += ["--set", f"loss.{name}.weight={max(minimum, weight if name == 'l1' else 2 * weight):g}"]
    return Recommendation("more weight on the terms that compare detail", run.train_again(*options))


def _two_digits(value: float) -> str:
    """Rounded down, so that a bound is kept."""
    if value <= 0:
        return "0"
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{math.floor(value / unit) * unit:.3g}"
