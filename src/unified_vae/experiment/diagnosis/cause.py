"""What ails a model: one cause, told from measured figures by rules that are written down. No torch here.

The causes are tried in the order of CAUSES, each on the understanding that none before it applies:

1. *barely trained*: worse than answering with the mean image. Nothing else can be read from such a model.
2. *posterior collapse*: the decoder ignores the latents, so neither their number nor the loss can matter.
3. *overfitted*: before *undertrained* and *too few latents*, whose cures would make it worse; not told of a run too
   short to judge, since the start at PCA alone knows few images by heart.
4. *undertrained*: before all that remains, since a model at rest is what they speak about. Going on is also the
   cheapest trial, and units may still wake while the PSNR rises.
5. *partial collapse*: units that stay idle at rest.
6. *too few latents*: the latents are used as well as PCA would use them, and more components would tell more.
7. *loss-induced blur*: what else blurs a model at rest that generalises and has room: the mean of all that fits.
8. *prior mismatch*: reconstructions have no fault left, but draws from N(0, I) are not what the decoder knows.

Blur is lost power at high frequencies (metrics/images.py), not a low PSNR. The thresholds and the reasons for
them stand beside them below; docs/objective.md has the table for users.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unified_vae.core.durable import write_text
from unified_vae.core.errors import CheckpointError
from unified_vae.experiment.diagnosis.history import History
from unified_vae.experiment.diagnosis.pca_line import INVISIBLE, PCALine

COLLAPSED = 0.1  # part of the needed units below which a posterior counts as collapsed
WEAK = 0.5  # below this it is on its way
BELOW_MEAN = 0.5  # dB under the mean image: beyond what its estimate from few images explains
MEMORISED = 3.0  # dB between training and validation: half of the validation error is failure to generalise
AT_REST_GAP = 1.5  # dB of the same in a run that no longer rises: 30 % of the error, the largest part still to be had
FALL = 0.5  # dB under its best validation, about the least difference that is seen
LEARNED = 0.2  # dB that training gained meanwhile; a fall of both is an accident of the learning rate
RISING = 0.5  # dB that the second half of a run brought, and doubling it would bring again
BELOW_LINE = 1.0  # dB under the linear VAE of the same latents and beta, which a network at its optimum includes
WORTH = 1.0  # dB that more latents (twice as many) have to promise a PCA: 20 % less error
BLURRED = 0.5  # of the detail's power is left: the half-power point; a Gaussian of half a pixel does as much
PIXELWISE = 0.5  # share of the distortion that is a mean of pixel errors, whose optimum is a mean or median image
FAR = 0.25  # part of the rate that only tells q(z) from the prior
FAR_NATS = 0.25  # nats a used unit: a standard deviation of 1.5, or of 0.5, where the prior has 1

COLLAPSE, PARTIAL, BARELY = "posterior collapse", "partial collapse", "barely trained"
OVERFITTED, UNDERTRAINED = "overfitted", "undertrained"
FEW_LATENTS, LOSS_BLUR, MISMATCH = "too few latents", "loss-induced blur", "prior mismatch"
HEALTHY = "healthy"
CAUSES = (BARELY, COLLAPSE, OVERFITTED, UNDERTRAINED, PARTIAL, FEW_LATENTS, LOSS_BLUR, MISMATCH)


@dataclass(frozen=True)
class Row:
    """A cause, whether it applies (None: not measured here), and the figures that say so."""

    cause: str
    applies: bool | None
    figures: str


@dataclass(frozen=True)
class Diagnosis:
    """The figures, and what follows from them.

    Attributes:
        psnr: dB on the validation set.
        mean_image_psnr: dB of answering with the mean image.
        rate: KL, nats per image.
        active_units: units with Var_x[mu_j] > 0.01.
        latents: units altogether.
        images: of the validation set.
        training_psnr: dB on as many training images.
        sharpness: power of the reconstructions' detail over that of the originals'.
        gap: nats between the aggregated posterior and the prior.
        pixel_share: part of the distortion that is a mean of pixel errors.
        beta, sigma: as training had them last; sigma is the calibrated noise.
        history: the run's course; None for a model without its run.
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
    def of(cls, values: Mapping[str, float], latents: int, **more: Any) -> Diagnosis:
        """From the values of a validation, and what `more` is known."""
        return cls(
            values["psnr"],
            values["psnr.mean_image"],
            values["rate.nats"],
            round(values["active_units"]),
            latents,
            sharpness=values.get("sharpness"),
            gap=values.get("posterior.gap"),
            **more,
        )

    # --- what the figures mean -----------------------------------------------------------------------

    @property
    def needed(self) -> int:
        """Units that these images can use: all of them, unless fewer components say the same."""
        return max(1, self.latents if self.line is None else min(self.latents, self.line.needed))

    @property
    def used(self) -> int:
        """Active units, or as few as the run had at its end: weights of an earlier step may still hold what it lost."""
        last = None if self.history is None else self.history.last.get("active_units")
        return self.active_units if last is None else min(self.active_units, round(last))

    @property
    def compares(self) -> bool:
        """Whether there are images to differ from one another: a single one is its own mean, and moves no unit."""
        return self.images != 1

    @property
    def ignorance(self) -> float:
        """dB of a constant answer that does not know the validation images: their own mean flatters few of them."""
        few = self.images or 1000
        return self.mean_image_psnr + 10 * math.log10(max(few - 1, 0.5) / (few + 1))

    @property
    def blurred(self) -> bool:
        """Whether detail is lost, and errors can be seen at all."""
        return self.sharpness is not None and self.sharpness < BLURRED and self.psnr < INVISIBLE

    @property
    def gain(self) -> float | None:
        """dB that the second half of the run brought; None where that is unknown."""
        return None if self.history is None else self.history.second_half()

    @property
    def rising(self) -> bool:
        """Whether the run has not come to rest."""
        return self.gain is not None and self.gain >= RISING and self.psnr < INVISIBLE

    @property
    def below_line(self) -> float | None:
        """dB that the model lacks to the linear VAE; None where that is unknown."""
        return None if self.line is None else self.line.reachable - self.psnr

    @property
    def verdict(self) -> str:
        """As far as collapse goes: `posterior collapse`, `barely trained`, `partial collapse`, `not collapsed`."""
        part = self.used / self.needed
        if not self.compares:
            return "a single validation image tells nothing of collapse"
        if part < COLLAPSED:
            return COLLAPSE
        if self.psnr < self.ignorance - BELOW_MEAN:
            return BARELY
        return PARTIAL if part < WEAK else "not collapsed"

    # --- the decision --------------------------------------------------------------------------------

    @property
    def cause(self) -> str:
        """One of CAUSES, the first that applies, or `healthy`."""
        return next((row.cause for row in self.evidence() if row.applies), HEALTHY)

    def evidence(self) -> list[Row]:
        """A row for each cause, in the order in which they are tried."""
        return [
            Row(BARELY, self._barely(), self._over_the_mean()),
            Row(COLLAPSE, self._active_below(COLLAPSED), self._units()),
            Row(OVERFITTED, self._overfitted(), self._generalisation()),
            Row(UNDERTRAINED, self._undertrained(), self._course()),
            Row(PARTIAL, self._active_below(WEAK), self._units()),
            Row(FEW_LATENTS, self._few_latents(), self._spectrum()),
            Row(LOSS_BLUR, None if self.sharpness is None else self.blurred, self._detail()),
            Row(MISMATCH, self._mismatch(), self._prior()),
        ]

    def _active_below(self, part: float) -> bool | None:
        return self.used < part * self.needed if self.compares else None

    def _barely(self) -> bool | None:
        """Worse than a constant on the training images too: on the others alone, an overfitted model may be."""
        if not self.compares:
            return None
        best = self.psnr if self.training_psnr is None else max(self.psnr, self.training_psnr)
        return best < self.ignorance - BELOW_MEAN

    def _overfitted(self) -> bool | None:
        fell = self.history is not None and self.history.fall() >= FALL and self.history.learned_since_best() >= LEARNED
        if self.training_psnr is None:
            return fell or None
        gap = self.training_psnr - self.psnr
        short = self.history is not None and self.history.steps > 0 and self.gain is None
        if short:  # the start at PCA knows few images by heart, and a few steps tell nothing of the network
            return fell
        return fell or gap >= MEMORISED or (gap >= AT_REST_GAP and self.gain is not None and not self.rising)

    def _undertrained(self) -> bool | None:
        """Rising, too short to tell, or at rest and blurred below what a linear map of the same latents reaches."""
        if self.history is None and self.line is None:
            return None
        too_short = self.history is not None and self.gain is None
        below = self.below_line is not None and self.below_line > BELOW_LINE and self.blurred
        return self.rising or too_short or below

    def _few_latents(self) -> bool | None:
        if self.line is None or self.below_line is None or self.sharpness is None:
            return None
        return self.blurred and self.below_line <= BELOW_LINE and self.line.worth >= WORTH

    def _mismatch(self) -> bool | None:
        if self.gap is None:
            return None
        return self.gap >= FAR * self.rate and self.gap >= FAR_NATS * max(self.active_units, 1)

    # --- the figures in words ------------------------------------------------------------------------

    def figures(self) -> str:
        """The numbers in one line."""
        return (
            f"PSNR {self.psnr:.2f} dB ({self.psnr - self.mean_image_psnr:+.2f} dB over the mean image), "
            f"KL {self.rate:.4g} nats, {self.active_units} of {self.latents} units active"
        )

    def _over_the_mean(self) -> str:
        return f"{self.psnr:.1f} dB, {self.psnr - self.mean_image_psnr:+.1f} dB over the mean image"

    def _units(self) -> str:
        needed = "" if self.needed == self.latents else f" ({self.needed} would do)"
        predicted = "" if self.line is None else f"; linear theory predicts {self.line.predicted_active}"
        end = "" if self.used == self.active_units else f", {self.used} at the end of the run"
        return f"{self.active_units} of {self.latents} units active{end}{needed}, KL {self.rate:.4g} nats{predicted}"

    def _generalisation(self) -> str:
        if self.training_psnr is None:
            return "not measured on training images"
        fall = 0.0 if self.history is None else self.history.fall()
        text = f"training images {self.training_psnr:.1f} dB, validation {self.psnr:.1f} dB"
        return f"{text} ({self.training_psnr - self.psnr:+.1f} dB); last validation {fall:.1f} dB below the best"

    def _course(self) -> str:
        parts = []
        if self.history is not None:
            few = f"only {self.history.steps:,} steps so far: too few to tell"
            parts.append(few if self.gain is None else f"the second half of the run brought {self.gain:+.1f} dB")
        if self.line is not None and self.below_line is not None:
            parts.append(f"{-self.below_line:+.1f} dB against the linear VAE of {self.latents} latents")
        return "; ".join(parts) or "no course of a run here"

    def _spectrum(self) -> str:
        if self.line is None:
            return "no principal components known"
        more = f"{self.line.more} would bring {self.line.worth:+.1f} dB"
        text = f"a linear model of {self.latents} reaches {self.line.psnr:.1f} dB, and {more}"
        return f"{text}; here {self.psnr:.1f} dB"

    def _detail(self) -> str:
        kept = "not measured" if self.sharpness is None else f"{self.sharpness:.0%} of the detail's power"
        share = "" if self.pixel_share is None else f"; pixel errors are {self.pixel_share:.0%} of the distortion"
        return f"sharpness: {kept}{share}"

    def _prior(self) -> str:
        if self.gap is None:
            return "not measured"
        beta = "" if self.beta is None else f" at beta {self.beta:.3g}"
        return f"{self.gap:.3g} of {self.rate:.4g} nats are distance from N(0, I){beta}"

    # --- keeping it ----------------------------------------------------------------------------------

    def write(self, path: Path) -> None:
        """Keep it, so that a resumed cure can still show before and after."""
        kept = asdict(self) | {"history": None, "line": None, "verdict": self.verdict}
        write_text(path, json.dumps(kept, indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> Diagnosis:
        """The inverse of `write`; the course of the run and the line are not kept.

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
