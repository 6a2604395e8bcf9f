"""The weight-free distortion terms: value at identity, size beside MSE, degree, cost of a step.

Errors are noise and blur of drawn faces, scaled to root mean squares between 0.02 and 0.1 (34 to 20 dB), as
docs/objective.md describes. The cost is that of forward and backward of 16 images on one thread, medians, as a
ratio to MSE's and as a share of a training step of the preset `small`.
"""

from __future__ import annotations

import math
import statistics
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from script import parser, save, settle, start, table
from unified_vae.data.cartoon.faces import draw_faces
from unified_vae.losses.build import build_objective
from unified_vae.losses.config import LossConfig, TermConfig
from unified_vae.losses.term import DistortionTerm
from unified_vae.models.build import build_model
from unified_vae.models.config import ConvConfig

NAME = "terms"
SIZES = (64, 128)
AMPLITUDES = (0.02, 0.04, 0.07, 0.1)
TYPICAL = 10 ** (-25 / 20)  # 25 dB
IMAGES, REPEATS = 16, 15


def weight_free() -> dict[str, TermConfig]:
    """Every term that needs no pretrained weights, switched on."""
    fields = {name: getattr(LossConfig(), name) for name in LossConfig.model_fields}
    return {
        name: field.model_copy(update={"weight": 1.0})
        for name, field in fields.items()
        if isinstance(field, TermConfig) and "weights_path" not in type(field).model_fields
    }


def pictures(size: int) -> Tensor:
    return torch.from_numpy(draw_faces(0, range(IMAGES), size)).permute(0, 3, 1, 2).float() / 255


def directions(images: Tensor) -> dict[str, Tensor]:
    """The two kinds of error, each of root mean square 1."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    line = torch.tensor([1.0, 4, 6, 4, 1]) / 16
    kernel = (line[:, None] * line)[None, None].expand(3, 1, 5, 5)
    blurred = images
    for _ in range(3):
        blurred = F.conv2d(F.pad(blurred, (2, 2, 2, 2), mode="replicate"), kernel, groups=3)
    found = {"noise": noise, "blur": blurred - images}
    return {name: error / error.square().mean().sqrt() for name, error in found.items()}


def degree(term: DistortionTerm, images: Tensor, error: Tensor) -> float:
    """Slope of log(term) against log(amplitude)."""
    values = [math.log(float(term(images + amplitude * error, images).mean())) for amplitude in AMPLITUDES]
    return float(np.polyfit(np.log(AMPLITUDES), values, 1)[0])


def seconds(term: DistortionTerm, images: Tensor) -> float:
    """Median of forward and backward."""
    taken = []
    for _ in range(REPEATS):
        reconstruction = (images + 0.05).requires_grad_()
        begun = time.perf_counter()
        term(reconstruction, images).mean().backward()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def step_seconds(size: int) -> float:
    """Median of forward and backward of the network of the preset `small`, enlarged to `size`."""
    model = build_model(ConvConfig(image_size=size, latents=256, base_channels=64, channels=3), seed=0)
    images, taken = pictures(size), []
    for _ in range(5):
        begun = time.perf_counter()
        model(images, torch.randn(IMAGES, 256)).reconstruction.square().mean().backward()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def measured(size: int) -> list[dict[str, Any]]:
    images = pictures(size)
    errors = directions(images)
    objective = build_objective(LossConfig.model_validate(weight_free()), 3, size)
    network, rows = step_seconds(size), []
    for name, term in objective.terms.items():
        assert isinstance(term, DistortionTerm)
        typical = {kind: float(term(images + TYPICAL * error, images).mean()) for kind, error in errors.items()}
        rows.append(
            {
                "term": name,
                "size": size,
                "at_identity": float(term(images, images).mean()),
                **{f"degree_{kind}": round(degree(term, images, error), 2) for kind, error in errors.items()},
                "degree_used": term.degree,
                **{f"over_mse_{kind}": round(value / TYPICAL**2, 2) for kind, value in typical.items()},
                "milliseconds": round(1000 * seconds(term, images), 2),
                "share_of_step": round(seconds(term, images) / network, 4),
            }
        )
    for row in rows:
        row["cost_over_mse"] = round(row["milliseconds"] / rows[0]["milliseconds"], 1)
    return rows


def main() -> None:
    options = settle(parser(NAME, __doc__).parse_args())
    rows = [row for size in SIZES[: 1 if options.quick else None] for row in measured(size)]
    save(options, NAME, {"images": IMAGES, "amplitudes": AMPLITUDES, "terms": rows})
    table(list(rows[0]), [list(row.values()) for row in rows])


if __name__ == "__main__":
    start(main)
