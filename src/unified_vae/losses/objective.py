"""What training minimizes: a calibrated distortion plus beta times the KL, in nats (docs/objective.md).

With MSE alone this is the optimal-sigma VAE (Rybkin, Daniilidis, Levine 2021, arXiv 2006.13202), and beta = 1
is the ELBO. Mixed distortions are put on the same scale through their degree, so that beta keeps its meaning.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unified_vae.config.loss import LIKELIHOODS, Capacity, FreeBits, Geco, LossConfig
from unified_vae.config.schedule import factor, warmup_end
from unified_vae.core.distributions import VAEOutput
from unified_vae.losses.base import DistortionTerm
from unified_vae.losses.kl import constrained_kl, geco_multiplier
from unified_vae.losses.perceptual import Backbone, FeatureTerm


@dataclass(frozen=True)
class ObjectiveValue:
    """Attributes:
    loss: scalar, to be minimized: (nll + beta * rate) / D, mean over the batch; with a constraint on the rate,
        `constrained_kl` in its place.
    terms: name -> scalar, mean over the batch, unweighted, detached.
    rate: scalar, KL in nats per image, detached.
    nll: scalar, nats per image, constants included, detached; a likelihood where `Objective.is_likelihood`.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    rate: Tensor
    nll: Tensor


class Objective(nn.Module):
    """loss = (NLL + beta * R) / D, with NLL = D/p * (E/s + log(s/W)) + D * log Z(p).

    E = sum_i w_i t_i is the distortion energy, R the KL in nats per image, D the number of pixel values of
    an image. The scale s = sum_i w_i m_i comes from running means m_i of the terms, and p is the energy's
    degree at that point, sum_i (w_i m_i / s) p_i (Euler's theorem on homogeneous functions). W = sum_i w_i
    makes the value, like the gradient, independent of the weights' common factor. Z(p) normalizes a pixel error's
    density exp(-|r|^p / p) / Z: sqrt(2 pi) for p = 2, 2 for p = 1. s and p take no gradient.

    The running means are the state, and with GECO the multiplier of beta. They are float32 (Apple's GPUs have no
    float64): a mean of decay 0.99 is exact to 1e-5 of the term, and a saved one returns bit for bit. Forward never
    changes them, so the micro-batches of a step share one scale, and validation is free of side effects.
    """

    observations: Tensor
    beta_multiplier: Tensor

    def __init__(self, config: LossConfig, terms: dict[str, DistortionTerm], dimensions: int) -> None:
        """Use `build.build_objective`.

        Args:
            config: resolved settings.
            terms: the enabled terms by their name in `config`.
            dimensions: D, pixel values per image (channels * height * width).
        """
        super().__init__()
        self.config = config
        self.terms = nn.ModuleDict(terms)
        self.dimensions = dimensions
        self.register_buffer("observations", torch.zeros((), dtype=torch.int64))
        self.register_buffer("beta_multiplier", torch.ones(()))  # stays 1 without GECO
        for name in terms:
            self.register_buffer(f"mean_{name}", torch.zeros(()))
        self._degrees = {name: term.degree for name, term in terms.items()}
        self._floors = {name: term.floor for name, term in terms.items()}
        self._geco = config.kl.constraint if isinstance(config.kl.constraint, Geco) else None
        self._calibrated = False  # observations > 0, known without asking the device
        self.register_load_state_dict_post_hook(_update_calibrated)

    def forward(
        self,
        output: VAEOutput,
        images: Tensor,
        progress: float,
        batch_mean_kl: Tensor | None = None,
        terms: dict[str, Tensor] | None = None,
    ) -> ObjectiveValue:
        """Return the objective of a batch or micro-batch, with the scale as it is.

        Args:
            output: the model's, for `images`.
            images: [batch, channels, height, width] in [0, 1].
            progress: fraction of the run that is done, 0 to 1, for the schedules.
            batch_mean_kl: [latents], mean KL of each unit over the whole batch, where `output` is a micro-batch and
                `needs_batch_kl`.
            terms: the result of `measure` for `output` and `images`, where it was computed already.
        """
        assert self._calibrated, "observe the first batch's `measure` before asking for a loss"
        terms = self.measure(output, images) if terms is None else terms
        with torch.autocast(images.device.type, enabled=False):
            weights = self.weights(progress)
            energy = _total({name: weights[name] * value for name, value in terms.items()})
            scale, degree = self.scale_and_degree(progress)
            if isinstance(degree, Tensor):
                log_z: float | Tensor = math.log(2) + torch.lgamma(1 + 1 / degree) + torch.log(degree) / degree
            else:
                log_z = math.log(2) + math.lgamma(1 + 1 / degree) + math.log(degree) / degree
            offset = torch.log(scale / sum(weights.values())) / degree + log_z
            per_value = energy / (scale * degree) + offset
            kl = output.posterior.kl_per_unit()
            constrained = constrained_kl(kl, self.config.kl.constraint, progress, batch_mean_kl)
            rate = kl.detach().sum(1).mean() if self.needs_batch_kl else constrained.detach()
            loss = per_value + self._beta(progress) * constrained / self.dimensions
        detached = {name: value.detach() for name, value in terms.items()}
        return ObjectiveValue(loss, detached, rate, (self.dimensions * per_value).detach())

    def loss_from_means(self, nll: Tensor, kl: Tensor, progress: float) -> Tensor:
        """Return the loss of a whole set, scalar, from its mean NLL (nats per image) and mean KL of each unit."""
        constrained = constrained_kl(kl[None], self.config.kl.constraint, progress)
        return (nll + self._beta(progress) * constrained) / self.dimensions

    @property
    def is_likelihood(self) -> bool:
        """Whether the distortion is a negative log likelihood, so that NLL + KL bounds that of the images."""
        return set(self.terms) in LIKELIHOODS

    @property
    def needs_batch_kl(self) -> bool:
        """Whether the loss needs the mean KL of the whole batch: it is not the mean of the micro-batches' losses."""
        return isinstance(self.config.kl.constraint, FreeBits | Capacity)

    def measure(self, output: VAEOutput, images: Tensor) -> dict[str, Tensor]:
        """Return the mean over the batch of each enabled term, unweighted: the input of `observe`."""
        with torch.autocast(images.device.type, enabled=False):
            reconstruction, target = output.reconstruction.float(), images.float()
            features: dict[Backbone, dict[str, Tensor]] = {}
            values = {}
            for name, term in self.terms.items():
                # two terms on one backbone share its pass, the larger part of their cost
                if isinstance(term, FeatureTerm):
                    if term.backbone not in features:
                        features[term.backbone] = term.backbone(reconstruction, target)
                    values[name] = term.distance(features[term.backbone]).mean()
                else:
                    values[name] = term(reconstruction, target).mean()
            return values

    @torch.no_grad()
    def observe(self, terms: dict[str, Tensor], skip: Tensor | None = None) -> None:
        """Update the running means, and GECO's beta, with the mean terms of one optimizer step.

        Nothing here waits for the device.

        The first observation sets the mean; the next ones weigh more than `calibration.decay` says, so that
        the start, where the error falls fast, is forgotten soon: after n observations the new one has the weight
        1 - min(decay, (1 + n) / (10 + n)).

        Args:
            terms: means over all micro-batches and ranks of the step.
            skip: scalar, 1 where the step was skipped and nothing is to be observed, else 0; None means 0. The terms
                may then be of any value.
        """
        count = self.observations
        new = torch.clamp(9 / (count + 10.0), min=1 - self.config.calibration.decay)
        if not self._calibrated:
            new = torch.where(count > 0, new, 1.0)
        seen = torch.ones_like(count, dtype=torch.bool) if skip is None else skip == 0
        error_before = self._mean("mse") if self._geco else None
        for name in self.terms:
            mean = self.get_buffer(f"mean_{name}")
            mean.lerp_(torch.where(seen, terms[name].to(mean), mean), new)
        if self._geco and error_before is not None:
            error = terms["mse"].to(error_before).clamp(min=self._floors["mse"])
            moved = geco_multiplier(
                self._geco, self.config.kl.weight, self.beta_multiplier, error, error_before, self._mean("mse")
            )
            # the first observation is that of the untrained model: it sets the scale and must not move beta
            self.beta_multiplier.copy_(torch.where(seen & (count > 0), moved, self.beta_multiplier))
        self.observations += seen
        self._calibrated = self._calibrated or skip is None

    def keep_beta(self, previous_weight: float) -> None:
        """Keep GECO's beta after it started from another `kl.weight`, as a continued run may have."""
        if self._geco:
            self.beta_multiplier *= previous_weight / self.config.kl.weight

    def weights(self, progress: float) -> dict[str, float]:
        """Return the weight of each enabled term at `progress`."""
        enabled = self.config.distortion_terms()
        return {name: enabled[name].weight * factor(enabled[name].schedule, progress) for name in self.terms}

    def beta(self, progress: float) -> float:
        """Return the weight of the KL at `progress`."""
        return float(self._beta(progress))

    def warmup_end(self) -> float:
        """Return the progress from which what is minimized no longer changes.

        GECO moves beta to the end: before that the weights may be sharper, at a KL that it would still have lowered.
        """
        kl = self.config.kl
        match kl.constraint:
            case Capacity(warmup=warmup):
                constraint_end = warmup
            case Geco():
                constraint_end = 1.0
            case _:
                constraint_end = 0.0
        terms = self.config.distortion_terms().values()
        return max(constraint_end, warmup_end(kl.schedule), *(warmup_end(term.schedule) for term in terms))

    @torch.no_grad()
    def scale_and_degree(self, progress: float) -> tuple[Tensor, Tensor | float]:
        """Return s, the expected distortion energy, and p, how the energy scales with the size of the error, scalars.

        p is a plain number where all terms have the same.
        """
        parts = {name: weight * self._mean(name) for name, weight in self.weights(progress).items()}
        scale, degrees = _total(parts), set(self._degrees.values())
        if len(degrees) == 1:
            return scale, degrees.pop()
        return scale, _total({name: self._degrees[name] * part for name, part in parts.items()}) / scale

    def sigma(self) -> float | None:
        """Return the root of the running mean squared error; None without MSE or before calibration."""
        if "mse" not in self.terms or not self._calibrated:
            return None
        return math.sqrt(self._mean("mse").item())

    def bits_per_dim(self, nll: Tensor, rate: Tensor) -> Tensor:
        """Return the code length of 8-bit pixels in bits per value, where `is_likelihood`; with latents drawn from the
        posterior, it is an upper bound."""
        return (nll + rate) / (self.dimensions * math.log(2)) + 8

    def shares(self, progress: float) -> dict[str, float]:
        """Return the part of the distortion energy that each enabled term has; empty before calibration."""
        if not self._calibrated:
            return {}
        scale, _ = self.scale_and_degree(progress)
        return {name: (weight * self._mean(name) / scale).item() for name, weight in self.weights(progress).items()}

    def _beta(self, progress: float) -> float | Tensor:
        """A tensor with GECO, so that training never waits for its value."""
        scheduled = self.config.kl.weight * factor(self.config.kl.schedule, progress)
        return scheduled * self.beta_multiplier if self._geco else scheduled

    def _mean(self, name: str) -> Tensor:
        """m_i: the running mean, not below the term's floor."""
        return self.get_buffer(f"mean_{name}").clamp(min=self._floors[name])


def _total(parts: dict[str, Tensor]) -> Tensor:
    values = list(parts.values())
    return values[0] if len(values) == 1 else torch.stack(values).sum()


def _update_calibrated(objective: Objective, _incompatible: Any) -> None:
    """A loaded state counts as calibrated if it has seen a batch."""
    objective._calibrated = bool(objective.observations > 0)
