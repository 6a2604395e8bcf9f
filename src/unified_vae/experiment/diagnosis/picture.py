"""The picture of a diagnosis: units, spectrum, detail, the run's path, and the images themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unified_vae.core.printable import printable
from unified_vae.experiment.diagnosis.cause import Diagnosis
from unified_vae.experiment.figure_file import save_figure
from unified_vae.metrics.sharpness import DETAIL, RadialSpectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Transform

ACTIVE_NATS = 0.005  # KL of a unit at the threshold, Var[mu] = 0.01, in linear theory: -log(1 - 0.01) / 2
MOST_BARS = 600
BLUE, ORANGE, GREY, DARK, RED = "#2b6cb0", "#dd6b20", "#a0aec0", "#4a5568", "#c53030"
BOX = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}
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

    figure = Figure(figsize=(15, 8.8), dpi=100)
    FigureCanvasAgg(figure)
    row = next((row for row in found.evidence() if row.cause == found.cause), None)
    title = f"{printable(name)}: {found.cause}"  # a name may hold anything, also a pair of dollars
    figure.text(0.012, 0.955, title, fontsize=16, fontweight="bold", parse_math=False)
    figure.text(0.012, 0.925, found.figures() if row is None else row.figures, fontsize=11, color=DARK)
    panels = figure.add_gridspec(2, 2, left=0.055, right=0.63, top=0.865, bottom=0.075, wspace=0.27, hspace=0.34)
    _units(figure.add_subplot(panels[0, 0]), found, views)
    _components(figure.add_subplot(panels[0, 1]), found)
    _detail(figure.add_subplot(panels[1, 0]), found, views)
    _path(figure.add_subplot(panels[1, 1]), found)
    _pictures(figure, views)
    save_figure(figure, path)


def _units(axes: Axes, found: Diagnosis, views: Views) -> None:
    kl = np.maximum(views.kl_per_unit, SMALLEST)
    shown = np.linspace(0, len(kl) - 1, min(len(kl), MOST_BARS)).round().astype(int)  # of thousands, some
    width = len(kl) / len(shown) * (0.9 if len(kl) < 60 else 1.0)
    axes.bar(1 + shown, kl[shown], width=width, color=np.where(kl[shown] < ACTIVE_NATS, ORANGE, BLUE))
    axes.axhline(ACTIVE_NATS, color=RED, linestyle="--", linewidth=1)
    words: dict[str, Any] = {"color": RED, "va": "bottom", "transform": _across(axes), "bbox": BOX}
    axes.text(0.02, 1.3 * ACTIVE_NATS, "idle below", **words)
    axes.set_yscale("log")
    axes.set_ylim(max(min(kl.min(), ACTIVE_NATS) / 3, SMALLEST / 2), max(kl.max(), 10 * ACTIVE_NATS) * 3)
    axes.set_xlim(0.5, len(kl) + 0.5)
    axes.locator_params(axis="x", integer=True)
    axes.set_title(f"Units: {found.active_units} of {found.latents} active")
    axes.set_xlabel("latent unit, by KL")
    axes.set_ylabel("KL (nats)")


def _components(axes: Axes, found: Diagnosis) -> None:
    assert found.line is not None
    variances = np.maximum(found.line.eigenvalues, SMALLEST)
    axes.plot(np.arange(1, len(variances) + 1), variances, color=BLUE, marker=".", markersize=4)
    axes.axvline(found.latents, color=GREY, linestyle=":")
    last = max(len(variances), found.latents) * 1.6
    side = "right" if found.latents**2 > 0.8 * last else "left"  # where there is more room
    words: dict[str, Any] = {"va": "top", "ha": side, "color": DARK, "transform": _along(axes)}
    axes.text(found.latents, 0.97, f" {found.latents} latents ", **words)
    low, high = variances.min(initial=1.0), variances.max(initial=SMALLEST)
    if found.beta and found.sigma:
        level = found.beta * found.sigma**2
        low, high = min(low, level), max(high, level)
        axes.axhline(level, color=RED, linestyle="--", linewidth=1)
        axes.text(
            0.02, level, "not worth its nats below beta x sigma$^2$", color=RED, va="top", transform=_across(axes)
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(low / 6, high * 4)
    axes.set_xlim(0.8, last)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_title("Principal components of the images")
    axes.set_xlabel("component")
    axes.set_ylabel("variance (squared pixel range, an image)")


def _detail(axes: Axes, found: Diagnosis, views: Views) -> None:
    spectrum = views.spectrum
    for values, label, colour, style in (
        (spectrum.originals, "originals", "black", "-"),
        (spectrum.reconstructions, "reconstructions", BLUE, "-"),
        (spectrum.errors, "errors", ORANGE, "--"),
    ):
        axes.plot(spectrum.frequencies, np.maximum(values, 1e-14), color=colour, linestyle=style, label=label)
    last = max(0.5, *spectrum.frequencies)
    axes.axvspan(DETAIL, last, color=GREY, alpha=0.18, linewidth=0)
    axes.text(DETAIL, 0.03, " detail", color=DARK, transform=_along(axes))
    axes.set_yscale("log")
    axes.set_xlim(0, last)
    kept = "" if found.sharpness is None else f": {found.sharpness:.0%} of the detail's power is there"
    axes.set_title(f"Sharpness{kept}")
    axes.set_xlabel("frequency (cycles per pixel)")
    axes.set_ylabel("power (squared pixel range)")
    axes.legend(loc="upper right", frameon=False)


def _path(axes: Axes, found: Diagnosis) -> None:
    axes.set_title("Path of the run, from light to dark")
    axes.set_xlabel("rate (nats an image)")
    axes.set_ylabel("distortion (nats an image)")
    points = np.array(found.history.path if found.history is not None else [])
    if len(points) == 0:
        axes.text(0.5, 0.5, "no course of a run here", ha="center", va="center", transform=axes.transAxes)
        return
    shades = np.linspace(0.25, 1.0, len(points)) if len(points) > 1 else np.ones(1)
    axes.plot(points[:, 0], points[:, 1], color=GREY, linewidth=1, zorder=1)
    axes.scatter(points[:, 0], points[:, 1], c=shades, cmap="Blues", vmin=0, vmax=1.1, s=26, zorder=2)
    axes.locator_params(axis="x", nbins=6)
    axes.margins(0.08)


def _pictures(figure: Figure, views: Views) -> None:
    """Strips below one another, each of rows of four pictures."""
    columns, left, width, top = 4, 0.665, 0.325, 0.905
    height = top / len(views.strips)
    for number, strip in enumerate(views.strips):
        start = top - number * height
        rows = -(-len(strip.pictures) // columns)
        figure.text(left, start - 0.018, strip.title, fontsize=11, color=DARK)
        grid = figure.add_gridspec(
            rows, columns, left=left, right=left + width, top=start - 0.028, bottom=start - height + 0.012,
            wspace=0.04, hspace=0.04,
        )  # fmt: skip
        for place, picture in enumerate(strip.pictures):
            axes = figure.add_subplot(grid[place // columns, place % columns])
            axes.imshow(picture, interpolation="nearest")
            axes.set_axis_off()


def _across(axes: Axes) -> Transform:
    """x as a part of the panel, y in the data."""
    return axes.get_yaxis_transform()


def _along(axes: Axes) -> Transform:
    """x in the data, y as a part of the panel."""
    return axes.get_xaxis_transform()
