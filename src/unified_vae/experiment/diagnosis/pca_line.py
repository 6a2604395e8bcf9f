"""What linear maps reach on a run's images: the yardstick of a diagnosis, as the pre-flight measured it. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NEAR = 1.0  # dB: components whose loss costs no more are not needed
INVISIBLE = 40.0  # dB: errors of 1 % of the pixel range, 2.5 of 255 grey levels, are not seen
FEWEST = 32  # latents that the smallest useful model has


@dataclass(frozen=True)
class PCALine:
    """PSNR on the validation images by number of principal components, and what linear theory predicted.

    Attributes:
        dimensions: D, pixel values an image.
        latents: of the model.
        eigenvalues: variances of the components on the training images, descending, squared pixel values.
        curve: dB of k components, k from 0 to as many as are known.
        predicted_active: units that the optimal linear VAE uses at the run's beta.
        predicted_psnr: dB of that VAE on the validation images.
        clipped: dB of as many components as latents, where that was measured with pixels clipped to [0, 1], as a
            run's own line is; a little above the curve.
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
        """From what the pre-flight wrote."""
        positions = int(content.get("positions", 1))
        curve = [float(content["validation_total"])]
        for variance in content["validation_variances"]:
            for _ in range(positions):
                curve.append(curve[-1] - float(variance))
        predicted = content["predicted"]
        dimensions = int(content["dimensions"])
        return cls(
            dimensions,
            int(content["latents"]),
            tuple(float(value) for value in content["eigenvalues"] for _ in range(positions)),
            tuple(-10 * math.log10(max(error / dimensions, 1e-12)) for error in curve),
            int(predicted["active_units"]),
            float(predicted["psnr"]),
            content.get("psnr_pca"),
        )

    def at(self, components: int) -> float:
        """dB of so many components, or of all that the images have."""
        return self.curve[min(components, len(self.curve) - 1)]

    @property
    def psnr(self) -> float:
        """dB of as many components as there are latents."""
        return self.at(self.latents) if self.clipped is None else self.clipped

    @property
    def reachable(self) -> float:
        """dB that a linear VAE reaches with these latents at this beta."""
        return min(self.psnr, self.predicted_psnr)

    @property
    def needed(self) -> int:
        """The fewest components, at most the latents, that come within NEAR of all of them, or of what is seen."""
        enough = min(self.at(self.latents), INVISIBLE) - NEAR
        return next(k for k in range(len(self.curve)) if self.curve[k] >= enough)

    @property
    def more(self) -> int:
        """A number of latents to compare with: twice as many, and no fewer than a small model has."""
        return max(2 * self.latents, FEWEST)

    @property
    def worth(self) -> float:
        """dB that `more` latents would be worth to a PCA.

        Where so many components are not known, what the last doubling brought: the spectra of photographs are
        power laws, on which each doubling brings about the same.
        """
        if len(self.curve) > self.more:
            return self.at(self.more) - self.at(self.latents)
        return self.at(self.latents) - self.at(self.latents // 2)
