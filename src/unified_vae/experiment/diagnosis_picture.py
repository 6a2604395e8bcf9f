"""The picture of a diagnosis: units, spectrum, detail, the run's path, and the images themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unified_vae.core.durable import STAGE_PREFIX
from unified_vae.experiment.diagnosis import Diagnosis
from unified_vae.metrics.sharpness import DETAIL, RadialSpectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACTIVE_NATS = 0.005  # KL of a unit at the threshold, Var[mu] = 0.01, in linear theory: -log(1 - 0.01) / 2
BLUE, ORANGE, GREY, RED = "#2b6cb0", "#dd6b20", "#a0aec0", "#c53030"
SMALLEST = 1e-7  # on a logarithmic axis


@dataclass(frozen=True)
class Strip:
    """Pictures in a row, uint8 [h, w, 3] each."""

    title: str
    pictures: Sequence[np.ndarray]


@dataclass(frozen=True)
class Views:
    """What is shown beside the diagnosis.

    Attributes:
        kl_per_unit: nats, descending.
        spectrum: power by frequency.
        strips: images.
    """

    kl_per_unit: Sequence[float]
    spectrum: RadialSpectrum
    strips: Sequence[Strip]


def paint(path: Path, name: str, found: Diagnosis, views: Views) -> None:
    """Write the picture as PNG, in one step."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 8.6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    row = next((row for row in found.evidence() if row.cause == found.cause), None)
    reason = found.figures() if row is None else row.figures
    figure.suptitle(f"{name}: {found.cause}\n", fontsize=15, fontweight="bold")
    figure.text(0.5, 0.945, reason, ha="center", fontsize=11, color="#4a5568")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.6, 1.0))[0]
    panels = left.subplots(2, 2)
    _units(panels[0][0], found, views)
    _components(panels[0][1], found)
    _detail(panels[1][0], found, views)
    _path(panels[1][1], found)
    _pictures(right, views)
    stage = path.with_name(f"{STAGE_PREFIX}{path.name}")
    figure.savefig(stage, format="png")
    stage.replace(path)


def _units(axes: Axes, found: Diagnosis, views: Views) -> None:
    kl = np.maximum(views.kl_per_unit, SMALLEST)
    numbers = np.arange(1, len(kl) + 1)
    axes.fill_between(numbers, SMALLEST, kl, step="mid", color=BLUE, alpha=0.35)
    axes.step(numbers, kl, where="mid", color=BLUE)
    axes.axhline(ACTIVE_NATS, color=RED, linestyle="--", linewidth=1)
    axes.text(0.98, ACTIVE_NATS * 1.15, "active above", color=RED, ha="right", transform=axes.get_yaxis_transform())
    axes.set_yscale("log")
    axes.set_ylim(max(kl.min() / 3, SMALLEST / 3), max(kl.max() * 3, 10 * ACTIVE_NATS))
    axes.set_xlim(0.5, len(kl) + 0.5)
    axes.set_title(f"KL of each unit: {found.active_units} of {found.latents} active")
    axes.set_xlabel("latent unit, by KL")
    axes.set_ylabel("KL (nats)")


def _components(axes: Axes, found: Diagnosis) -> None:
    assert found.line is not None
    variances = np.array(found.line.eigenvalues)
    axes.plot(np.arange(1, len(variances) + 1), np.maximum(variances, SMALLEST), color=BLUE, marker=".", markersize=4)
    axes.axvline(found.latents, color=GREY, linestyle=":")
    axes.annotate(f"{found.latents} latents", (found.latents, 1), xycoords=("data", "axes fraction"), rotation=90,
                  xytext=(-3, -6), textcoords="offset points", ha="right", va="top", color="#4a5568")  # fmt: skip
    if found.beta and found.sigma:
        level = found.beta * found.sigma**2
        axes.axhline(level, color=RED, linestyle="--", linewidth=1)
        axes.text(0.02, level * 1.15, "water level: beta x sigma^2", color=RED, transform=axes.get_yaxis_transform())
        low, high = min(level, variances.min(initial=level)), max(level, variances.max(initial=level))
        axes.set_ylim(max(low / 4, SMALLEST), high * 4)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title("Principal components: worth their nats above the level")
    axes.set_xlabel("component")
    axes.set_ylabel("variance (pixel range squared, per image)")


def _detail(axes: Axes, found: Diagnosis, views: Views) -> None:
    spectrum = views.spectrum
    for values, label, colour, style in (
        (spectrum.originals, "originals", "#1a202c", "-"),
        (spectrum.reconstructions, "reconstructions", BLUE, "-"),
        (spectrum.errors, "errors", ORANGE, "--"),
    ):
        axes.plot(spectrum.frequencies, np.maximum(values, 1e-14), color=colour, linestyle=style, label=label)
    axes.axvspan(DETAIL, max(0.5, *spectrum.frequencies), color=GREY, alpha=0.18, linewidth=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(spectrum.frequencies[0], max(0.5, *spectrum.frequencies))
    kept = "" if found.sharpness is None else f": {found.sharpness:.0%} of the detail kept (shaded)"
    axes.set_title(f"Power spectrum{kept}")
    axes.set_xlabel("frequency (cycles per pixel)")
    axes.set_ylabel("power (pixel range squared)")
    axes.legend(loc="lower left", frameon=False)


def _path(axes: Axes, found: Diagnosis) -> None:
    axes.set_title("Path of the run: rate against distortion")
    axes.set_xlabel("rate (nats an image)")
    axes.set_ylabel("distortion (nats an image)")
    points = np.array(found.history.path if found.history is not None else [])
    if len(points) == 0:
        axes.text(0.5, 0.5, "no course of a run here", ha="center", va="center", transform=axes.transAxes)
        return
    axes.plot(points[:, 0], points[:, 1], color=GREY, linewidth=1, zorder=1)
    dots = axes.scatter(points[:, 0], points[:, 1], c=np.arange(len(points)), cmap="viridis", s=22, zorder=2)
    if len(points) > 1:
        bar = axes.figure.colorbar(dots, ax=axes, pad=0.01)
        bar.set_label("validation")


def _pictures(figure: Figure, views: Views) -> None:
    parts = figure.subfigures(len(views.strips), 1, squeeze=False)[:, 0]
    for part, strip in zip(parts, views.strips, strict=True):
        part.suptitle(strip.title, fontsize=11)
        columns = 4
        rows = -(-len(strip.pictures) // columns)
        grid = part.subplots(rows, columns, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, picture in zip(grid.flat, strip.pictures, strict=False):
            axes.imshow(picture, interpolation="nearest")
