"""Settings of the objective: one typed field a term. `loss.kl.weight` is beta (docs/objective.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from unified_vae.config.base import Config
from unified_vae.config.schedule import Constant, WeightSchedule, factor

MissingWeights = Literal["replace", "strict"]
KLReduction = Literal["nats", "sum_sum", "half_sum_sum", "mean_sum", "mean_mean", "l1_sum"]
PIXEL_TERMS = ("mse", "l1", "charbonnier")
"""Distortion terms that are means of pixel errors."""
LIKELIHOODS: tuple[set[str], ...] = ({"mse"}, {"l1"})
"""Distortion terms that alone are a negative log likelihood: of a Gaussian, of a Laplace density. No mix is one."""
LIKELIHOOD_METRICS = ("loss.nll", "bits_per_dim", "distortion.bits_per_dim")
"""Logged for those alone: of a mix, such numbers would look like a likelihood and mean nothing."""


def is_likelihood(loss: Mapping[str, object]) -> bool:
    """Return whether NLL + KL of a recorded run is a bound on the likelihood.

    Args:
        loss: the settings `loss` as a record has them, name -> {"weight": ...}; those it lacks are off.
    """
    enabled = {name for name, term in loss.items() if isinstance(term, Mapping) and term.get("weight")}
    return enabled - {"kl"} in LIKELIHOODS


class TermConfig(Config):
    """What every term has."""

    weight: float = Field(default=0.0, ge=0)
    """Weight in the distortion energy; 0 leaves the term out altogether (it is not computed)."""
    schedule: WeightSchedule = Constant()
    """How the weight changes over the run."""


class MSEConfig(TermConfig):
    """Mean squared error per pixel value: accuracy."""

    weight: float = Field(default=1.0, ge=0)
    """Weight in the distortion energy; the only term that is on by default."""


class L1Config(TermConfig):
    """Mean absolute error per pixel value: edges."""


class CharbonnierConfig(TermConfig):
    """Absolute error, rounded off near zero (Charbonnier et al. 1994; Lai et al. 2017, arXiv 1704.03915)."""

    epsilon: float = Field(default=1e-3, gt=0, le=0.005)
    """Error, as a part of the pixel range, below which the distance is quadratic; LapSRN's value by default."""


class LaplacianConfig(TermConfig):
    """Absolute error of a Laplacian pyramid's levels, Lap1 (Bojanowski et al. 2018, arXiv 1707.05776): detail."""


class FocalFrequencyConfig(TermConfig):
    """Squared error of the spectrum, the worst frequencies first (Jiang et al. 2021, arXiv 2012.12821)."""

    alpha: float = Field(default=1.0, ge=0, le=4)
    """How much the worst frequencies are preferred; at 0 the term is the mean squared error."""


class HaarPSIConfig(TermConfig):
    """1 - HaarPSI (Reisenhofer et al. 2018, arXiv 1607.06140): perceptual, without pretrained weights."""


class MSSSIMConfig(TermConfig):
    """1 - MS-SSIM (Wang et al. 2003): structure at several scales, no pretrained weights."""


class PretrainedTermConfig(TermConfig):
    """What every term on a pretrained network has."""

    weights_path: str | None = None
    """The network's file, where it is not in torchvision's cache and cannot be downloaded."""
    missing: MissingWeights = "replace"
    """Without the pretrained weights: `replace` this term by haarpsi and say so, or be `strict` and stop."""


class PerceptualConfig(PretrainedTermConfig):
    """Distance of VGG-16 features at several layers (Johnson et al. 2016, arXiv 1603.08155)."""

    layers: list[Literal["relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"]] = Field(
        default=["relu1_2", "relu2_2", "relu3_3", "relu4_3"], min_length=1
    )
    """The layers whose features are compared."""


class LPIPSConfig(PretrainedTermConfig):
    """Learned perceptual image patch similarity (Zhang et al. 2018, arXiv 1801.03924)."""

    net: Literal["vgg", "alex"] = "vgg"
    """Backbone. `vgg` is the usual one for training, `alex` for reporting."""


class Unconstrained(Config):
    """The plain rate, weighed by beta."""

    kind: Literal["none"] = "none"


class FreeBits(Config):
    """No unit is pushed below a few nats: sum_j max(mean KL_j, lambda) (Kingma et al. 2016, arXiv 1606.04934)."""

    kind: Literal["free_bits"] = "free_bits"
    nats_per_unit: float = Field(default=0.1, gt=0)
    """Lambda: the KL of each latent unit that costs nothing, on average over the images of a batch, in nats."""


class Capacity(Config):
    """The rate is held at a target C that grows: beta * |R - C| (Burgess et al. 2018, arXiv 1804.03599).

    Beta is how firmly: it has to be above the beta at which the rate would settle at C by itself.
    """

    kind: Literal["capacity"] = "capacity"
    capacity: float = Field(default=200.0, ge=0)
    """C at the end of its growth, in nats per image."""
    initial_capacity: float = Field(default=0.0, ge=0)
    """C at the first step, in nats per image."""
    warmup: float = Field(default=0.5, gt=0, le=1)
    """Part of the run over which C grows (0.5 is the first half)."""

    @model_validator(mode="after")
    def _grows(self) -> Capacity:
        if self.initial_capacity > self.capacity:
            raise ValueError(
                f"the capacity grows, and initial_capacity {self.initial_capacity:g} is above capacity "
                f"{self.capacity:g}: swap them"
            )
        return self


class Geco(Config):
    """At least `psnr` dB at the least KL: beta is moved to meet the error (Rezende & Viola 2018, arXiv 1810.00597)."""

    kind: Literal["geco"] = "geco"
    psnr: float = Field(default=30.0, gt=0, le=58)
    """Target for the training images, decoded from drawn latents, in dB. Rounding to 8 bits alone leaves 58.9."""
    speed: float = Field(default=0.02, gt=0, le=1)
    """Change of log(beta) per optimizer step, for an error of e times the target."""
    min_beta: float = Field(default=0.01, gt=0)
    """Beta goes no lower, however large the error."""
    max_beta: float = Field(default=1000.0, gt=0)
    """Beta goes no higher, however small the error."""

    @model_validator(mode="after")
    def _leaves_room(self) -> Geco:
        if self.min_beta >= self.max_beta:
            raise ValueError(f"min_beta {self.min_beta:g} has to be below max_beta {self.max_beta:g}")
        return self

    @property
    def target(self) -> float:
        """The mean squared error of `psnr`, for pixels in [0, 1]."""
        return float(10 ** (-self.psnr / 10))


RateConstraint = Annotated[Unconstrained | FreeBits | Capacity | Geco, Field(discriminator="kind")]


class KLConfig(Config):
    """The rate: KL(q(z|x) || N(0, I)) in nats per image, summed over latents."""

    weight: float = Field(default=1.0, ge=0)
    """Beta. 1 is the ELBO; above 1 the latents are closer to N(0, I) and samples better."""
    reduction: KLReduction = "nats"
    """What `weight` is written in: `nats` is this project's beta; a weight of another trainer (`sum_sum`,
    `half_sum_sum`, `mean_sum`, `mean_mean`, `l1_sum`) is converted to the beta that does the same on these images."""
    schedule: WeightSchedule = Constant()
    """How beta changes over the run."""
    constraint: RateConstraint = Unconstrained()
    """What bounds the rate: `none`, `free_bits` a unit, a `capacity` that grows, or `geco`, which moves beta itself."""

    @model_validator(mode="after")
    def _starts_within_the_bounds(self) -> KLConfig:
        geco = self.constraint
        if isinstance(geco, Geco) and self.reduction != "nats":
            raise ValueError("geco moves beta itself: give its start, kl.weight, with kl.reduction=nats")
        if isinstance(geco, Geco) and not geco.min_beta <= self.weight <= geco.max_beta:
            raise ValueError(
                f"weight {self.weight:g} is where geco starts, so it has to lie between constraint.min_beta "
                f"{geco.min_beta:g} and constraint.max_beta {geco.max_beta:g}"
            )
        return self


class CalibrationConfig(Config):
    """How the scale of the distortion follows the data."""

    decay: float = Field(default=0.99, ge=0, lt=1)
    """Weight of the past in the running mean of each term, per optimizer step."""


class LossConfig(Config):
    """The whole objective: a mix of distortions, calibrated, plus beta times the rate."""

    mse: MSEConfig = MSEConfig()
    l1: L1Config = L1Config()
    charbonnier: CharbonnierConfig = CharbonnierConfig()
    laplacian: LaplacianConfig = LaplacianConfig()
    focal_frequency: FocalFrequencyConfig = FocalFrequencyConfig()
    perceptual: PerceptualConfig = PerceptualConfig()
    lpips: LPIPSConfig = LPIPSConfig()
    haarpsi: HaarPSIConfig = HaarPSIConfig()
    ms_ssim: MSSSIMConfig = MSSSIMConfig()
    kl: KLConfig = KLConfig()
    calibration: CalibrationConfig = CalibrationConfig()

    @model_validator(mode="after")
    def _has_distortion(self) -> LossConfig:
        if not self.distortion_terms():
            raise ValueError(
                "every distortion weight is 0, so nothing would be reconstructed: give mse a weight above 0"
            )
        # A schedule is 0 somewhere only if it is 0 at the start, so the start stands for the whole run.
        if not any(factor(term.schedule, 0.0) > 0 for term in self.distortion_terms().values()):
            raise ValueError(
                "every distortion weight is warmed up from 0, so the first step would have nothing to "
                "learn from: give one of them, mse say, a constant schedule"
            )
        return self

    @model_validator(mode="after")
    def _error_for_geco(self) -> LossConfig:
        if isinstance(self.kl.constraint, Geco) and self.mse.weight == 0:
            raise ValueError(
                "kl.constraint geco holds a PSNR, which is the squared error, and mse has weight 0: "
                "give mse a weight above 0"
            )
        return self

    def distortion_terms(self) -> dict[str, TermConfig]:
        """Return the enabled distortion terms by their dotted name under `loss`, in the order of the fields."""
        return {
            name: value
            for name in type(self).model_fields
            if isinstance(value := getattr(self, name), TermConfig) and value.weight > 0
        }

    def pixel_share(self, means: Mapping[str, float]) -> float | None:
        """Return the part of the distortion that is a mean of pixel errors, by the terms' means; None where unknown."""
        enabled = self.distortion_terms()
        parts = {name: enabled[name].weight * mean for name, mean in means.items() if name in enabled}
        total = sum(parts.values())
        return sum(parts.get(name, 0.0) for name in PIXEL_TERMS) / total if total > 0 else None
