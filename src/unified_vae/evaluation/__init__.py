"""Measures finished models: one, or several side by side with paired differences."""

from enum import StrEnum
from typing import Literal

Weights = Literal["ema", "raw", "both"]
"""Averaged over the steps, as stepped, or both."""


class Group(StrEnum):
    """Metrics that are measured together."""

    RECONSTRUCTION = "reconstruction"
    LATENTS = "latents"
    LIKELIHOOD = "likelihood"
    SAMPLES = "samples"
    FACTORS = "factors"
