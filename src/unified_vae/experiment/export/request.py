"""What an export is asked for. Importing this does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Format(StrEnum):
    """What to write."""

    ONNX = "onnx"
    TORCH = "torch"
    AOTI = "aoti"
    SAFETENSORS = "safetensors"
    DIFFUSERS = "diffusers"


class Weights(StrEnum):
    """Which of a checkpoint's two sets of weights."""

    EMA = "ema"
    RAW = "raw"


class Half(StrEnum):
    """The arithmetic of a smaller export."""

    FP16 = "fp16"
    BF16 = "bf16"


@dataclass(frozen=True)
class ExportRequest:
    """What is asked for.

    Attributes:
        target: a run's folder, a checkpoint's in it, or an exported model's.
        to: what to write.
        output: folder to write; None is a folder of its own below the run's `exports`.
        checkpoint: a step, `best` or `last`; None takes the best there is.
        weights: the averaged ones or those that were stepped; None takes the averaged ones, and of a model what it has.
        half: half precision, where the audit allows it; None is float32.
        data: images for the audit, other than the run's.
        images: how many images the audit looks at.
        device: auto, cpu, ... for the audit; None as the run had it.
    """

    target: Path
    to: Format
    output: Path | None = None
    checkpoint: str | None = None
    weights: Weights | None = None
    half: Half | None = None
    data: str | None = None
    images: int = 256
    device: str | None = None
