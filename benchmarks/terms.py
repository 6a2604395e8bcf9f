"""The weight-free distortion terms: value at identity, size beside MSE, degree, cost, and their shares in the presets.

Errors are noise and blur, scaled to root mean squares between 0.02 and 0.1 (34 to 20 dB), as docs/objective.md
describes, on 16 drawn faces and on 16 images of each set named with --images. The cost is that of forward and
backward of 16 images, a median, as a ratio to MSE's and as a share of that of the network of the preset `small`.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from script import parser, save, settle, start, table
from unified_vae.config.loss import LossConfig, TermConfig
from unified_vae.config.model import ConvConfig
from unified_vae.config.presets import PresetBook, from_command_line
from unified_vae.data.cartoon.faces import draw_faces
from unified_vae.data.decode import PixelFormat, decode
from unified_vae.data.sources.find import find_source
from unified_vae.losses.base import DistortionTerm
from unified_vae.losses.build import build_objective
from unified_vae.models.build import build_model

NAME = "terms"
SIZES = (64, 128)
SMALL, LARGE = (0.001, 0.003), (0.02, 0.04, 0.07, 0.1)  # amplitudes: where a term is smooth, where a VAE works
TYPICAL = 10 ** (-25 / 20)  # 25 dB
IMAGES, REPEATS = 16, 15
Terms = dict[str, DistortionTerm]
Row = dict[str, Any]


def weight_free() -> dict[str, TermConfig]:
    """Every term that needs no pretrained weights, switched on."""
    fields = {name: getattr(LossConfig(), name) for name in LossConfig.model_fields}
    return {
        name: field.model_copy(update={"weight": 1.0})
        for name, field in fields.items()
        if isinstance(field, TermConfig) and "weights_path" not in type(field).model_fields
    }


def built(size: int) -> Terms:
    objective = build_objective(LossConfig.model_validate(weight_free()), 3, size)
    return {name: term for name, term in objective.terms.items() if isinstance(term, DistortionTerm)}


def drawn(size: int) -> Tensor:
    return _as_batch([*draw_faces(0, range(IMAGES), size)])


def read(where: str, size: int) -> Tensor:
    """Images spread evenly over a source, brought to size as in training."""
    source = find_source(where, Path(tempfile.gettempdir()), lambda *_: None)
    count = len(source.listing().records)
    positions = sorted({number * count // IMAGES for number in range(IMAGES)})
    return _as_batch([decode(load(), PixelFormat(size, 3)).pixels for load in source.read(positions)])


def _as_batch(pixels: list[Any]) -> Tensor:
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255


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


def degree(term: DistortionTerm, images: Tensor, error: Tensor, amplitudes: tuple[float, ...]) -> float:
    """Slope of log(term) against log(amplitude)."""
    values = [math.log(float(term(images + amplitude * error, images).mean())) for amplitude in amplitudes]
    return round(float(np.polyfit(np.log(amplitudes), values, 1)[0]), 2)


def seconds(work: Callable[[], Tensor], repeats: int) -> float:
    """Median of forward and backward, after one to warm up."""
    taken = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        work().backward()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken[1:])


def measured(kind: str, images: Tensor, terms: Terms) -> list[Row]:
    """What holds for each term on one set of images."""
    errors, rows = directions(images), []
    for name, term in terms.items():
        row: Row = {"term": name, "images": kind, "size": images.shape[-1]}
        row["at_identity"] = float(term(images, images).mean())
        for error_kind, error in errors.items():
            typical = float(term(images + TYPICAL * error, images).mean())
            row[f"over_mse_{error_kind}"] = round(typical / TYPICAL**2, 2)
            row[f"degree_{error_kind}"] = degree(term, images, error, LARGE)
            row[f"degree_{error_kind}_small"] = degree(term, images, error, SMALL)
        rows.append({**row, "degree_used": term.degree})
    return rows


def costs(size: int, terms: Terms) -> list[Row]:
    """Time of each term beside MSE and beside the network."""
    images = drawn(size)
    model = build_model(ConvConfig(image_size=size, latents=256, base_channels=64, channels=3), seed=0)
    noise = torch.zeros(IMAGES, 256)
    network = seconds(lambda: model(images, noise).reconstruction.square().mean(), 5)
    reconstruction = (images + 0.05).requires_grad_()
    taken = {name: seconds(lambda t=term: t(reconstruction, images).mean(), REPEATS) for name, term in terms.items()}
    return [
        {
            "term": name,
            "size": size,
            "milliseconds": round(1000 * value, 2),
            "over_mse": round(value / taken["mse"], 1),
            "part_of_step": round(value / network, 4),
        }
        for name, value in taken.items()
    ]


def shares(rows: list[Row]) -> list[Row]:
    """Percent of the energy that each term has in the presets without pretrained terms, at 25 dB."""
    book, found = PresetBook.load(), []
    for preset in book.presets("loss"):
        enabled = book.compose({"loss": preset}, from_command_line({}, [])).config.loss.distortion_terms()
        if len(enabled) < 2 or not set(enabled) <= set(weight_free()):
            continue
        for kind, size in dict.fromkeys((row["images"], row["size"]) for row in rows):
            here = {row["term"]: row for row in rows if (row["images"], row["size"]) == (kind, size)}
            for error in ("noise", "blur"):
                parts = {name: term.weight * here[name][f"over_mse_{error}"] for name, term in enabled.items()}
                percents = {name: round(100 * part / sum(parts.values())) for name, part in parts.items()}
                found.append({"preset": preset, "images": kind, "size": size, "error": error, "percent": percents})
    return found


def options() -> argparse.Namespace:
    choices = parser(NAME, __doc__)
    choices.add_argument("--images", nargs="+", default=[], help="folders or archives of images to measure on as well")
    return settle(choices.parse_args())


def main() -> None:
    chosen = options()
    rows, prices = [], []
    for size in SIZES[: 1 if chosen.quick else None]:
        terms = built(size)
        prices += costs(size, terms)
        sets = {"drawn faces": drawn(size), **{Path(where).stem: read(where, size) for where in chosen.images}}
        rows += [row for kind, images in sets.items() for row in measured(kind, images, terms)]
    parts = shares(rows)
    amplitudes = {"amplitudes": LARGE, "amplitudes_small": SMALL}
    save(chosen, NAME, {"count": IMAGES, **amplitudes, "terms": rows, "costs": prices, "shares": parts})
    for block in (rows, prices, parts):
        table(list(block[0]), [list(row.values()) for row in block])


if __name__ == "__main__":
    start(main)
