"""The pictures of a comparison: originals above each model's reconstructions and samples; curves of the runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from unified_vae.core.printable import printable
from unified_vae.experiment.evaluation.entrants import Result, Views
from unified_vae.experiment.figure_file import save_figure
from unified_vae.training.sheets import below_one_another, sheet, write_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LONGEST = 70  # letters of a caption
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#000000",
)  # Okabe & Ito: told apart by all
MARKERS = "osD^vPX"
LINES = ("-", "--", "-.", ":")


def paint_sheet(path: Path, results: Sequence[Result]) -> None:
    """The same images: originals, then each model's reconstructions; below, samples of each."""
    size = max(result.originals.shape[1] for result in results)
    largest = next(result for result in results if result.originals.shape[1] == size)
    blocks = [_row(largest.originals, size, "originals")]
    blocks += [_row(result.reconstructions, size, f"{_named(result)}: reconstructions") for result in results]
    blocks += [_row(result.samples, size, f"{_named(result)}: new pictures") for result in results]
    write_picture(below_one_another(blocks), path)


def _row(pictures: Views, size: int, caption: str) -> Image.Image:
    views = [np.asarray(Image.fromarray(view).resize((size, size), Image.Resampling.NEAREST)) for view in pictures]
    short = caption if len(caption) <= LONGEST else "..." + caption[3 - LONGEST :]
    return sheet(np.stack(views), len(views), short)


def _named(result: Result) -> str:
    size = result.originals.shape[1]
    return f"{result.entrant.label} ({size} px)"


def paint_plot(path: Path, results: Sequence[Result]) -> None:
    """Rate against PSNR, with the way of each run; PSNR over steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for number, result in enumerate(results):
        _way(left, result, number)
        _course(right, result, number)
    _finish(left, "Rate and PSNR: large marks as measured here, lines the way there", "rate (nats an image)")
    _finish(right, "PSNR over training", "step")
    save_figure(figure, path)


def _way(axes: Axes, result: Result, number: int) -> None:
    values = {figure.name: figure.value for figure in result.figures}
    colour, marker, line = _style(number)
    if result.history.rates:
        rates, decibels = zip(*result.history.rates, strict=True)
        axes.plot(rates, decibels, color=colour, linestyle=line, linewidth=1, alpha=0.6)
    rate, psnr = values.get("rate"), values.get("psnr.pooled")
    if rate is not None and psnr is not None:
        axes.plot([rate], [psnr], color=colour, marker=marker, markersize=10, linestyle="", label=_label(result))


def _course(axes: Axes, result: Result, number: int) -> None:
    colour, marker, line = _style(number)
    if result.history.validation:
        steps, decibels = zip(*result.history.validation, strict=True)
        axes.plot(steps, decibels, color=colour, linestyle=line, marker=marker, markersize=4, label=_label(result))


def _finish(axes: Axes, title: str, below: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(below)
    axes.set_ylabel("PSNR of validation images (dB)")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[1]:
        legend = axes.legend(fontsize=9)
        for text in legend.get_texts():
            text.set_parse_math(False)  # a name may hold dollars
    else:
        axes.text(0.5, 0.5, "no course of a run here", ha="center", va="center", transform=axes.transAxes)


def _style(number: int) -> tuple[str, str, str]:
    return COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)], LINES[number % len(LINES)]


def _label(result: Result) -> str:
    """Matplotlib leaves labels out that begin with an underscore."""
    return printable(result.entrant.label).lstrip("_") or "model"
