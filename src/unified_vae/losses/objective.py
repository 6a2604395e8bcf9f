"""What training minimises: a calibrated distortion plus beta times the rate, in nats (docs/objective.md).

With MSE alone this is the optimal-sigma VAE (Rybkin, Daniilidis, Levine 2021, arXiv 2006.13202), and beta = 1
is the ELBO. Mixed distortions are put on the same scale through their degree, so that beta keeps its meaning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unified_vae.config.loss import LIKELIHOODS, Capacity, FreeBits, Geco, LossConfig
from unified_vae.config.schedule import describe, factor, settled_at
from unified_vae.core.vae_output import VAEOutput
from unified_vae.losses import constraint
from unified_vae.losses.geco import next_multiplier
from unified_vae.losses.kl import priced_mean, priced_rate
from unified_vae.losses.term import DistortionTerm


@dataclass(frozen=True)
class ObjectiveValue:
    """Attributes:
    loss: scalar, to be minimised: (nll + beta * rate) / D, mean over the batch; with a constraint on the rate,
        what it makes of the rate.
    terms: name -> scalar, mean over the batch, unweighted, detached.
    rate: scalar, nats per image, detached.
    nll: scalar, nats per image, constants included, detached; a likelihood where `Objective.is_likelihood`.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    rate: Tensor
    nll: Tensor


@dataclass(frozen=True)
class TermRow:
    """One line of the table shown at start and on resume.

    Attributes:
        name: of the term, as in `loss.NAME`.
        weight: at the asked progress.
        schedule: how it changes, in words.
        mean: running mean of the unweighted term, None before the first observation.
        share: part of the distortion energy that is this term's, None before the first observation.
        degree: how the term scales with the size of the error.
    """

    name: str
    weight: float
    schedule: str
    mean: float | None
    share: float | None
    degree: float


def log_normaliser(degree: Tensor) -> Tensor:
    """log Z of a pixel error's density exp(-|r|^p / p) / Z: log sqrt(2 pi) for p = 2, log 2 for p = 1."""
    return math.log(2) + torch.lgamma(1 + 1 / degree) + torch.log(degree) / degree


class Objective(nn.Module):
    """loss = (NLL + beta * R) / D, with NLL = D/p * (E/s + log(s/W)) + D * log_normaliser(p).

    E = sum_i w_i t_i is the distortion energy, R the KL in nats per image, D the number of pixel values of
    an image. The scale s = sum_i w_i m_i comes from running means m_i of the terms, and p is the energy's
    degree at that point, sum_i (w_i m_i / s) p_i (Euler's theorem on homogeneous functions). W = sum_i w_i
    makes the value, like the gradient, independent of the weights' common factor. s and p take no gradient.

    The running means are the state, and with GECO the multiplier of beta. They are float32 (Apple's GPUs know no
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
        degrees = {term.degree for term in terms.values()}
        self._only_degree = degrees.pop() if len(degrees) == 1 else None
        self._calibrated = False  # observations > 0, known without asking the device
        self.register_load_state_dict_post_hook(_notice_calibration)

    def forward(
        self,
        output: VAEOutput,
        images: Tensor,
        progress: float,
        whole_kl: Tensor | None = None,
        terms: dict[str, Tensor] | None = None,
    ) -> ObjectiveValue:
        """The objective of a batch, or of a piece of one, with the scale as it is.

        Args:
            output: the model's, for `images`.
            images: [batch, channels, height, width] in [0, 1].
            progress: part of the run that is done, 0 to 1, for the schedules.
            whole_kl: [latents], mean KL of each unit over the whole batch, where `output` is a piece of it and
                `bends_at_the_mean`.
            terms: what `measure` gives for `output` and `images`, where that is known already.
        """
        assert self._calibrated, "observe the first batch's `measure` before asking for a loss"
        with torch.autocast(images.device.type, enabled=False):
            terms = self._terms(output, images) if terms is None else terms
            weights = self.weights(progress)
            energy = _total({name: weights[name] * value for name, value in terms.items()})
            scale, degree = self._standing(weights)
            offset = torch.log(scale / sum(weights.values())) / degree + self._log_normaliser(degree)
            per_value = energy / (scale * degree) + offset
            kl = output.posterior.kl_per_unit()
            priced = priced_rate(kl, self.config.kl.constraint, progress, whole_kl)
            rate = kl.detach().sum(1).mean() if self.bends_at_the_mean else priced.detach()
            loss = per_value + self._beta(progress) * priced / self.dimensions
        detached = {name: value.detach() for name, value in terms.items()}
        return ObjectiveValue(loss, detached, rate, (self.dimensions * per_value).detach())

    def of_means(self, nll: Tensor, kl: Tensor, progress: float) -> Tensor:
        """The loss of a whole set, scalar, from its mean NLL (nats per image) and mean KL per unit ([latents])."""
        priced = priced_mean(kl, self.config.kl.constraint, progress)
        return (nll + self._beta(progress) * priced) / self.dimensions

    @property
    def is_likelihood(self) -> bool:
        """Whether the distortion is a negative log likelihood, so that NLL + KL bounds that of the images."""
        return set(self.terms) in LIKELIHOODS

    @property
    def bends_at_the_mean(self) -> bool:
        """Whether the loss of a batch is not simply the mean of its pieces' losses."""
        return isinstance(self.config.kl.constraint, FreeBits | Capacity)

    def measure(self, output: VAEOutput, images: Tensor) -> dict[str, Tensor]:
        """Mean over the batch of each enabled term, unweighted: what `observe` takes."""
        with torch.autocast(images.device.type, enabled=False):
            return self._terms(output, images)

    @torch.no_grad()
    def observe(self, terms: dict[str, Tensor], skip: Tensor | None = None) -> None:
        """Fold one optimizer step's mean terms into the running means, and move GECO's beta.

        Nothing here waits for the device.

        The first observation sets the mean; the next ones weigh more than `calibration.decay` says, so that
        the start, where the error falls fast, is forgotten soon.

        Args:
            terms: means over all micro-batches and ranks of the step.
            skip: scalar, 1 where the step was skipped and nothing is to be observed, else 0; None means 0. The terms
                may then be of any value.
        """
        new = self._part_of_the_newest()
        seen = torch.ones_like(self.observations, dtype=torch.bool) if skip is None else skip == 0
        error_before = self._mean("mse") if self._geco else None
        for name in self.terms:
            mean = self.get_buffer(f"mean_{name}")
            mean.lerp_(torch.where(seen, terms[name].to(mean), mean), new)
        if error_before is not None:
            self._move_beta(terms["mse"], error_before, seen)
        self.observations += seen
        self._calibrated = self._calibrated or skip is None

    def _part_of_the_newest(self) -> Tensor:
        """1 - min(decay, (1 + n) / (10 + n)) after n observations, but 1 where there are none."""
        count = self.observations
        later = torch.clamp(9 / (count + 10.0), min=1 - self.config.calibration.decay)
        return torch.where(count > 0, later, 1.0) if not self._calibrated else later

    def started_from(self, weight: float) -> None:
        """Keep the beta that GECO found where it had started from another `kl.weight`, as a continued run may have."""
        if self._geco:
            self.beta_multiplier *= weight / self.config.kl.weight

    def weights(self, progress: float) -> dict[str, float]:
        """The weight of each enabled term at `progress`."""
        enabled = self.config.distortion_terms()
        return {name: enabled[name].weight * factor(enabled[name].schedule, progress) for name in self.terms}

    def beta(self, progress: float) -> float:
        """The weight of the rate at `progress`."""
        return float(self._beta(progress))

    def settled_at(self) -> float:
        """The progress from which no weight changes any more."""
        schedules = [term.schedule for term in self.config.distortion_terms().values()]
        ends = [settled_at(schedule) for schedule in [*schedules, self.config.kl.schedule]]
        return max(*ends, constraint.settled_at(self.config.kl.constraint))

    def scale(self, progress: float) -> Tensor:
        """s: the expected distortion energy, scalar."""
        return self._standing(self.weights(progress))[0]

    def degree(self, progress: float) -> Tensor:
        """p: how the energy scales with the size of the error where training stands, scalar."""
        scale, degree = self._standing(self.weights(progress))
        return torch.as_tensor(degree).to(scale)

    def sigma(self) -> float | None:
        """Root of the running mean squared error; None without MSE or before calibration."""
        if "mse" not in self.terms or not self._calibrated:
            return None
        return math.sqrt(self._mean("mse").item())

    def bits_per_dim(self, nll: Tensor, rate: Tensor) -> Tensor:
        """Code length of 8-bit pixels in bits per value, where `is_likelihood`; from latents drawn from the posterior,
        a bound."""
        return (nll + rate) / (self.dimensions * math.log(2)) + 8

    def rows(self, progress: float) -> list[TermRow]:
        """A line for each enabled term."""
        weights, enabled = self.weights(progress), self.config.distortion_terms()
        parts, scale, known = self._parts(weights), self.scale(progress), self._calibrated
        return [
            TermRow(
                name=name,
                weight=weights[name],
                schedule=describe(enabled[name].schedule),
                mean=self._mean(name).item() if known else None,
                share=(parts[name] / scale).item() if known else None,
                degree=self._term(name).degree,
            )
            for name in self.terms
        ]

    @property
    def _geco(self) -> Geco | None:
        asked = self.config.kl.constraint
        return asked if isinstance(asked, Geco) else None

    def _beta(self, progress: float) -> float | Tensor:
        """A tensor with GECO, so that training never waits for its value."""
        scheduled = self.config.kl.weight * factor(self.config.kl.schedule, progress)
        return scheduled * self.beta_multiplier if self._geco else scheduled

    def _move_beta(self, error: Tensor, error_before: Tensor, seen: Tensor) -> None:
        assert self._geco
        error = error.to(error_before).clamp(min=self._term("mse").floor)
        moved = next_multiplier(
            self._geco, self.config.kl.weight, self.beta_multiplier, error, error_before, self._mean("mse")
        )
        # the first observation is that of the untrained model: it sets the scale and says nothing of beta
        self.beta_multiplier.copy_(torch.where(seen & (self.observations > 0), moved, self.beta_multiplier))

    def _terms(self, output: VAEOutput, images: Tensor) -> dict[str, Tensor]:
        reconstruction, target = output.reconstruction.float(), images.float()
        return {name: term(reconstruction, target).mean() for name, term in self.terms.items()}

    def _term(self, name: str) -> DistortionTerm:
        term = self.terms[name]
        assert isinstance(term, DistortionTerm)
        return term

    def _mean(self, name: str) -> Tensor:
        """m_i: the running mean, not below the term's floor."""
        return self.get_buffer(f"mean_{name}").clamp(min=self._term(name).floor)

    def _log_normaliser(self, degree: Tensor | float) -> Tensor | float:
        if isinstance(degree, Tensor):
            return log_normaliser(degree)
        return math.log(2) + math.lgamma(1 + 1 / degree) + math.log(degree) / degree

    def _parts(self, weights: Mapping[str, float]) -> dict[str, Tensor]:
        """w_i * m_i of each enabled term."""
        return {name: weight * self._mean(name) for name, weight in weights.items()}

    @torch.no_grad()
    def _standing(self, weights: Mapping[str, float]) -> tuple[Tensor, Tensor | float]:
        """s and p where training stands; p is a plain number where all terms have the same."""
        parts = self._parts(weights)
        scale = _total(parts)
        if self._only_degree is not None:
            return scale, self._only_degree
        return scale, _total({name: self._term(name).degree * part for name, part in parts.items()}) / scale


def _total(parts: dict[str, Tensor]) -> Tensor:
    values = list(parts.values())
    return values[0] if len(values) == 1 else torch.stack(values).sum()


def _notice_calibration(objective: Objective, _incompatible: Any) -> None:
    """A loaded state counts as calibrated if it has seen a batch."""
    objective._calibrated = bool(objective.observations > 0)
