"""What ails a model, told from one validation. Pure functions of measured numbers; no torch here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from unified_vae.core.durable import write_text
from unified_vae.core.errors import CheckpointError

COLLAPSED = 0.1  # part of active units below which a posterior counts as collapsed
WEAK = 0.5  # below this it is on its way


@dataclass(frozen=True)
class Diagnosis:
    """The figures that tell collapse from blur, and the verdict.

    Attributes:
        psnr: dB on the validation set.
        mean_image_psnr: dB of answering with the mean image.
        rate: KL, nats per image.
        active_units: units with Var_x[mu_j] > 0.01.
        latents: units altogether.
    """

    psnr: float
    mean_image_psnr: float
    rate: float
    active_units: int
    latents: int

    @classmethod
    def of(cls, values: Mapping[str, float], latents: int) -> Diagnosis:
        """From the values of a validation."""
        return cls(
            values["psnr"], values["psnr.mean_image"], values["rate.nats"], round(values["active_units"]), latents
        )

    @property
    def verdict(self) -> str:
        """One of `posterior collapse`, `barely trained`, `partial collapse`, `not collapsed`."""
        part = self.active_units / self.latents
        if part < COLLAPSED:
            return "posterior collapse"
        if self.psnr < self.mean_image_psnr:
            return "barely trained"
        return "partial collapse" if part < WEAK else "not collapsed"

    def figures(self) -> str:
        """The numbers in one line."""
        return (
            f"PSNR {self.psnr:.2f} dB ({self.psnr - self.mean_image_psnr:+.2f} dB over the mean image), "
            f"KL {self.rate:.4g} nats, {self.active_units} of {self.latents} units active"
        )

    def write(self, path: Path) -> None:
        """Keep it, so that a resumed cure can still show before and after."""
        write_text(path, json.dumps({**asdict(self), "verdict": self.verdict}, indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> Diagnosis:
        """The inverse of `write`.

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
