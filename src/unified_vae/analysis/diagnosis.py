"""Rule-based diagnosis of a trained model: the one cause of blur or poor samples, from its metrics. No torch.

The rules (`Diagnosis.evidence`) are tried in order, each on the understanding that none before it applies:

1. *barely trained*: worse than answering with the mean image. Nothing else can be read from such a model.
2. *posterior collapse*: the decoder ignores the latents, so neither their number nor the loss can matter.
3. *overfitted*: before *undertrained* and *too few latents*, whose repairs would make it worse; not diagnosed in a run
   too short to judge, since the start at PCA alone memorizes few images.
4. *undertrained*: before all that remains, since a converged model is what they are about. Training on is also the
   cheapest trial, and units may still become active while the PSNR rises.
5. *partial collapse*: units that stay idle in a converged model.
6. *too few latents*: the latents are used as well as PCA would use them, and more components would explain more.
7. *loss-induced blur*: what else blurs a converged model that generalizes and has room: the mean of all that fits.
8. *prior mismatch*: reconstructions have no fault left, but draws from N(0, I) are not what the decoder knows.

Blur is lost power at high frequencies (metrics/images.py), not a low PSNR. The thresholds and the reasons for them
stand beside them below; docs/objective.md has the table for users.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unified_vae.core.errors import CheckpointError
from unified_vae.core.files import write_text

COLLAPSED = 0.1  # fraction of the needed units below which a posterior counts as collapsed
PARTLY_COLLAPSED = 0.5  # below this it is on its way
BELOW_MEAN = 0.5  # dB below the mean image: more than its estimate from few images explains
MEMORIZED = 3.0  # dB between training and validation: half of the validation error is failure to generalize
MEMORIZED_AT_ONCE = 6.0  # dB of the same that no start and no few steps explain: three quarters of the error
CONVERGED_GAP = 1.5  # dB of the same in a run that no longer rises: 30 % of the error, the largest part still to be had
DROP = 0.5  # dB below its best validation, about the smallest visible difference
LEARNED = 0.2  # dB that training gained meanwhile; a drop of both is an accident of the learning rate
RISING = 0.5  # dB that the second half of a run brought, and doubling it would bring again
BELOW_LINE = 1.0  # dB below the linear VAE of the same latents and beta, which a network at its optimum includes
WORTH = 1.0  # dB that more latents (twice as many) have to promise a PCA: 20 % less error
BLURRED = 0.5  # fraction of the detail's power that is left: the half-power point, as after a Gaussian of half a pixel
PIXELWISE = 0.5  # fraction of the distortion that is a mean of pixel errors, whose optimum is a mean or median image
MISMATCHED = 0.25  # fraction of the KL that only separates q(z) from the prior
MISMATCHED_NATS = 0.25  # per used unit: a standard deviation of 1.5, or of 0.5, where the prior has 1
NEAR = 1.0  # dB: components that cost no more when they are lost are not needed
INVISIBLE = 40.0  # dB: errors of 1 % of the pixel range, 2.5 of 255 gray levels, are not seen
MIN_LATENTS = 32  # of the smallest useful model
MIN_POINTS = 4  # below which a learning curve is too short to judge

COLLAPSE, PARTIAL, BARELY = "posterior collapse", "partial collapse", "barely trained"
OVERFITTED, UNDERTRAINED = "overfitted", "undertrained"
FEW_LATENTS, LOSS_BLUR, MISMATCH = "too few latents", "loss-induced blur", "prior mismatch"
HEALTHY = "healthy"
CAUSES = (BARELY, COLLAPSE, OVERFITTED, UNDERTRAINED, PARTIAL, FEW_LATENTS, LOSS_BLUR, MISMATCH)
"""In the order in which their rules are tried."""

Curve = Sequence[tuple[int, float]]
"""(step, value) pairs, by ascending step."""


# --- what a diagnosis looks at ---------------------------------------------------------------------------


@dataclass(frozen=True)
class History:
    """The learning curves of a run, from its metrics file.

    Attributes:
        validation: (step, dB) of the averaged weights.
        training: (step, dB) from the mean squared error of training, latents drawn; empty without that term.
        path: (rate, distortion) of each validation, both in nats per image.
        beta, sigma: of the last training row; None where there is none.
        last: metrics of the last validation.
        rates: (rate in nats per image, dB) of each validation.
    """

    validation: Curve = ()
    training: Curve = ()
    path: Sequence[tuple[float, float]] = ()
    beta: float | None = None
    sigma: float | None = None
    last: Mapping[str, Any] = field(default_factory=dict)
    rates: Sequence[tuple[float, float]] = ()

    @classmethod
    def read(cls, path: Path, until: int | None = None) -> History:
        """Read a metrics file, also one that is being written; a line that is cut off is left out.

        Args:
            until: use only rows of up to this step.
        """
        rows = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            try:
                row = json.loads(line)
            except ValueError:
                continue  # the last line of a run that is writing it
            if isinstance(row, dict) and {"split", "step"} <= set(row) and (until is None or row["step"] <= until):
                rows.append(row)
        validation = [row for row in rows if row["split"] == "validation"]
        training = [row for row in rows if row["split"] == "train"]
        last = training[-1] if training else {}
        return cls(
            validation=[(row["step"], row["psnr"]) for row in validation],
            training=[
                (row["step"], -10 * math.log10(max(row["loss.mse"], 1e-12))) for row in training if "loss.mse" in row
            ],
            path=[
                (row["rate.nats"], row["distortion.nats" if "distortion.nats" in row else "loss.nll"])
                for row in validation
            ],
            beta=last.get("beta"),
            sigma=last.get("sigma"),
            last=validation[-1] if validation else {},
            rates=[(row["rate.nats"], row["psnr"]) for row in validation],
        )

    @property
    def steps(self) -> int:
        """The last step that has a row."""
        return max((curve[-1][0] for curve in (self.validation, self.training) if curve), default=0)

    def second_half_gain(self) -> float | None:
        """Return the dB that the second half of the run brought; None where the run is too short to tell.

        Learning curves rise about evenly on a logarithmic axis of steps, so this is also about what doubling the run
        would bring. From the validations; where they are too few, from the training rows.
        """
        if len(self.validation) >= MIN_POINTS:
            return self.validation[-1][1] - interpolate(self.validation, self.validation[-1][0] / 2)
        if len(self.training) < 2 * MIN_POINTS:
            return None
        end, means = self.training[-1][0], []
        for low, high in ((0.8 * end, end), (0.4 * end, 0.6 * end)):
            values = [value for step, value in self.training if low <= step <= high]
            means.append(sum(values) / len(values) if values else interpolate(self.training, (low + high) / 2))
        return means[0] - means[1]

    def drop_from_best(self) -> float:
        """Return the dB by which the last validation lies below the best one."""
        values = [value for _, value in self.validation]
        return max(values) - values[-1] if values else 0.0

    def training_gain_since_best(self) -> float:
        """Return the dB that training gained after the best validation."""
        if not self.validation or len(self.training) < MIN_POINTS:
            return 0.0
        best = max(self.validation, key=lambda point: point[1])[0]
        return self.training[-1][1] - interpolate(self.training, best)


def interpolate(curve: Curve, step: float) -> float:
    """Return the value at a step, linear between neighbors and constant beyond the ends."""
    before = [point for point in curve if point[0] <= step]
    after = [point for point in curve if point[0] >= step]
    if not before or not after:
        return (after or before)[0 if after else -1][1]
    (left, low), (right, high) = before[-1], after[0]
    return low if right == left else low + (high - low) * (step - left) / (right - left)


@dataclass(frozen=True)
class PCALine:
    """What linear maps reach on a run's images, as the preflight measured it: the baseline of a diagnosis.

    Attributes:
        dimensions: D, pixel values per image.
        latents: of the model.
        eigenvalues: variances of the components on the training images, descending, squared pixel values.
        curve: dB of k components on the validation images, k from 0 to as many as are known.
        predicted_active: units that the optimal linear VAE uses at the run's beta.
        predicted_psnr: dB of that VAE on the validation images.
        clipped: dB of as many components as latents, where that was measured with pixels clipped to [0, 1], as a run's
            own baseline is; a little above the curve.
    """

    dimensions: int
    latents: int
    eigenvalues: tuple[float, ...]
    curve: tuple[float, ...]
    predicted_active: int
    predicted_psnr: float
    clipped: float | None = None

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> PCALine:
        """Read what the preflight wrote."""
        positions, dimensions = int(content.get("positions", 1)), int(content["dimensions"])
        predicted = content["predicted"]
        errors = [float(content["validation_total"])]
        for variance in content["validation_variances"]:
            for _ in range(positions):
                errors.append(errors[-1] - float(variance))
        return cls(
            dimensions,
            int(content["latents"]),
            tuple(float(value) for value in content["eigenvalues"] for _ in range(positions)),
            tuple(-10 * math.log10(max(error / dimensions, 1e-12)) for error in errors),
            int(predicted["active_units"]),
            float(predicted["psnr"]),
            content.get("psnr_pca"),
        )

    def psnr_of(self, components: int) -> float:
        """Return the dB of so many components, or of all that the images have."""
        return self.curve[min(components, len(self.curve) - 1)]

    @property
    def psnr(self) -> float:
        """dB of as many components as there are latents."""
        return self.psnr_of(self.latents) if self.clipped is None else self.clipped

    @property
    def reachable(self) -> float:
        """dB that a linear VAE reaches with these latents at this beta."""
        return min(self.psnr, self.predicted_psnr)

    @property
    def needed(self) -> int:
        """The fewest components, at most the latents, that come within NEAR of all of them, or of what is visible."""
        enough = min(self.psnr_of(self.latents), INVISIBLE) - NEAR
        return next(k for k in range(len(self.curve)) if self.curve[k] >= enough)

    @property
    def more(self) -> int:
        """A number of latents to compare with: twice as many, and no fewer than a small model has."""
        return max(2 * self.latents, MIN_LATENTS)

    @property
    def worth(self) -> float:
        """dB that `more` latents would be worth to a PCA.

        Where so many components are not known, what the last doubling brought: the spectra of photographs are
        power laws, on which each doubling brings about the same.
        """
        if len(self.curve) > self.more:
            return self.psnr_of(self.more) - self.psnr_of(self.latents)
        return self.psnr_of(self.latents) - self.psnr_of(self.latents // 2)


@dataclass(frozen=True)
class Evidence:
    """Whether a cause applies (None: not measured here), and the metrics that say so."""

    cause: str
    applies: bool | None
    text: str

    def to_json(self) -> dict[str, Any]:
        """Return the entry of a diagnosis file."""
        return {"cause": self.cause, "applies": self.applies, "figures": self.text}


@dataclass(frozen=True)
class Diagnosis:
    """The metrics of a model, and what follows from them.

    Attributes:
        psnr: dB on the validation set.
        mean_image_psnr: dB of answering with the mean image.
        rate: KL, nats per image.
        active_units: units with Var_x[mu_j] > 0.01.
        latents: units altogether.
        images: of the validation set.
        training_psnr: dB on as many training images.
        sharpness: power of the reconstructions' detail over that of the originals'.
        gap: nats between the aggregate posterior and the prior.
        pixel_share: fraction of the distortion that is a mean of pixel errors.
        beta, sigma: as training had them last; sigma is the calibrated noise.
        history: learning curves of the run; None for a model without its run.
        line: what linear maps reach; None where that is unknown.
    """

    psnr: float
    mean_image_psnr: float
    rate: float
    active_units: int
    latents: int
    images: int | None = None
    training_psnr: float | None = None
    sharpness: float | None = None
    gap: float | None = None
    pixel_share: float | None = None
    beta: float | None = None
    sigma: float | None = None
    history: History | None = None
    line: PCALine | None = None

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, float], latents: int, **more: Any) -> Diagnosis:
        """Take the metrics of a validation, and `more` where it is known."""
        return cls(
            metrics["psnr"],
            metrics["psnr.mean_image"],
            metrics["rate.nats"],
            round(metrics["active_units"]),
            latents,
            sharpness=metrics.get("sharpness"),
            gap=metrics.get("posterior.gap"),
            **more,
        )

    @property
    def needed_units(self) -> int:
        """Units that these images can use: all of them, unless fewer components explain the same."""
        return max(1, self.latents if self.line is None else min(self.latents, self.line.needed))

    @property
    def used_units(self) -> int:
        """Active units, or as few as the run had at its end: weights of an earlier step may still hold what it lost."""
        last = None if self.history is None else self.history.last.get("active_units")
        return self.active_units if last is None else min(self.active_units, round(last))

    @property
    def has_several_images(self) -> bool:
        """Whether there are images to differ from one another: a single one is its own mean, and moves no unit."""
        return self.images != 1

    @property
    def constant_psnr(self) -> float:
        """dB of a constant that does not know the validation images: their own mean flatters few of them."""
        count = self.images or 1000
        return self.mean_image_psnr + 10 * math.log10(max(count - 1, 0.5) / (count + 1))

    @property
    def is_blurred(self) -> bool:
        """Whether detail is lost, and errors can be seen at all."""
        return self.sharpness is not None and self.sharpness < BLURRED and self.psnr < INVISIBLE

    @property
    def gain(self) -> float | None:
        """dB that the second half of the run brought; None where that is unknown."""
        return None if self.history is None else self.history.second_half_gain()

    @property
    def is_rising(self) -> bool:
        """Whether the run has not converged."""
        return self.gain is not None and self.gain >= RISING and self.psnr < INVISIBLE

    @property
    def below_line(self) -> float | None:
        """dB that the model lacks to the linear VAE; None where that is unknown."""
        return None if self.line is None else self.line.reachable - self.psnr

    @property
    def verdict(self) -> str:
        """As far as collapse goes: `posterior collapse`, `barely trained`, `partial collapse`, `not collapsed`."""
        if not self.has_several_images:
            return "a single validation image tells nothing of collapse"
        fraction = self.used_units / self.needed_units
        if fraction < COLLAPSED:
            return COLLAPSE
        if self.psnr < self.constant_psnr - BELOW_MEAN:
            return BARELY
        return PARTIAL if fraction < PARTLY_COLLAPSED else "not collapsed"

    @property
    def cause(self) -> str:
        """The first of CAUSES that applies, or `healthy`."""
        return next((evidence.cause for evidence in self.evidence() if evidence.applies), HEALTHY)

    def evidence(self) -> list[Evidence]:
        """Apply the rule of each cause, in the order of CAUSES."""
        history, line, below_line = self.history, self.line, self.below_line

        # Barely trained: worse than a constant on the training images too; on the others alone, an overfitted model may
        # be
        best = self.psnr if self.training_psnr is None else max(self.psnr, self.training_psnr)
        barely = best < self.constant_psnr - BELOW_MEAN if self.has_several_images else None
        over_mean = f"{self.psnr:.1f} dB, {self.psnr - self.mean_image_psnr:+.1f} dB over the mean image"

        # Collapse, whole or in part: active units against those that the images can use
        collapsed, partly = (
            self.used_units < fraction * self.needed_units if self.has_several_images else None
            for fraction in (COLLAPSED, PARTLY_COLLAPSED)
        )
        end = "" if self.used_units == self.active_units else f", {self.used_units} at the end of the run"
        needed = "" if self.needed_units == self.latents else f" ({self.needed_units} would do)"
        predicted = "" if line is None else f"; linear theory predicts {line.predicted_active}"
        units = f"{self.active_units} of {self.latents} units active{end}{needed}, KL {self.rate:.4g} nats{predicted}"

        # Overfitted: a drop from the best validation, or a gap to the training images. The start at PCA memorizes few
        # images, and a few steps tell nothing of the network
        drop = 0.0 if history is None else history.drop_from_best()
        dropped = history is not None and drop >= DROP and history.training_gain_since_best() >= LEARNED
        overfitted: bool | None
        if self.training_psnr is None:
            overfitted = True if dropped else None
            generalization = "not measured on training images"
        else:
            gap = self.training_psnr - self.psnr
            too_early = history is not None and history.steps > 0 and self.gain is None
            converged = self.gain is not None and not self.is_rising
            limit = MEMORIZED_AT_ONCE if too_early else CONVERGED_GAP if converged else MEMORIZED
            overfitted = dropped or gap >= limit
            generalization = (
                f"training images {self.training_psnr:.1f} dB, validation {self.psnr:.1f} dB ({gap:+.1f} dB); "
                f"last validation {drop:.1f} dB below the best"
            )

        # Undertrained: rising, too short to tell, or converged and blurred below what a linear map of the same latents
        # reaches
        too_short = history is not None and self.gain is None
        below = below_line is not None and below_line > BELOW_LINE and self.is_blurred
        undertrained = None if history is None and line is None else self.is_rising or too_short or below
        progress = []
        if history is not None:
            few = f"only {history.steps:,} steps so far: too few to tell"
            progress.append(few if self.gain is None else f"the second half of the run brought {self.gain:+.1f} dB")
        if below_line is not None:
            progress.append(f"{-below_line:+.1f} dB against the linear VAE of {self.latents} latents")

        # Too few latents: at the line, where more components would explain more
        few_latents, spectrum = None, "no principal components known"
        if line is not None and below_line is not None:
            if self.sharpness is not None:
                few_latents = self.is_blurred and below_line <= BELOW_LINE and line.worth >= WORTH
            spectrum = (
                f"a linear model of {self.latents} reaches {line.psnr:.1f} dB, and {line.more} would bring "
                f"{line.worth:+.1f} dB; here {self.psnr:.1f} dB"
            )

        # Loss-induced blur: whatever else blurs
        kept = "not measured" if self.sharpness is None else f"{self.sharpness:.0%} of the detail's power"
        share = "" if self.pixel_share is None else f"; pixel errors are {self.pixel_share:.0%} of the distortion"
        blurred = None if self.sharpness is None else self.is_blurred

        # Prior mismatch: of the KL, and of each unit's, too much only separates q(z) from the prior
        mismatched, distance = None, "not measured"
        if self.gap is not None:
            least = max(MISMATCHED * self.rate, MISMATCHED_NATS * max(self.active_units, 1))
            mismatched = self.gap >= least
            beta = "" if self.beta is None else f" at beta {self.beta:.3g}"
            distance = f"{self.gap:.3g} of {self.rate:.4g} nats are distance from N(0, I){beta}"

        return [
            Evidence(BARELY, barely, over_mean),
            Evidence(COLLAPSE, collapsed, units),
            Evidence(OVERFITTED, overfitted, generalization),
            Evidence(UNDERTRAINED, undertrained, "; ".join(progress) or "no learning curve of a run here"),
            Evidence(PARTIAL, partly, units),
            Evidence(FEW_LATENTS, few_latents, spectrum),
            Evidence(LOSS_BLUR, blurred, f"sharpness: {kept}{share}"),
            Evidence(MISMATCH, mismatched, distance),
        ]

    def summary(self) -> str:
        """Return the evidence of the cause in one line, or of a healthy model its metrics."""
        cause = self.cause
        return next((evidence.text for evidence in self.evidence() if evidence.cause == cause), self.describe())

    def describe(self) -> str:
        """Return the metrics in one line."""
        return (
            f"PSNR {self.psnr:.2f} dB ({self.psnr - self.mean_image_psnr:+.2f} dB over the mean image), "
            f"KL {self.rate:.4g} nats, {self.active_units} of {self.latents} units active"
        )

    def write(self, path: Path) -> None:
        """Keep the metrics, so that a resumed repair can still show before and after."""
        kept = asdict(self) | {"history": None, "line": None, "verdict": self.verdict}
        write_text(path, json.dumps(kept, indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> Diagnosis:
        """Read what `write` kept: all but the learning curves and the line.

        Raises:
            CheckpointError: the file is damaged.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            content.pop("verdict")
            return cls(**content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
            raise CheckpointError(
                f"{path} cannot be read ({problem}): delete it; only the comparison is lost."
            ) from problem
