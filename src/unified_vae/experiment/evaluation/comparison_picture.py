"""The pictures of a comparison: originals above each model's reconstructions and samples; curves of the runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from unified_vae.experiment.evaluation.entrants import Result, Views
from unified_vae.training.sheets import below_one_another, sheet, write_picture

LONGEST = 70  # letters of a caption


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
    from unified_vae.report.plots import draw_comparison

    models = {}
    for result in results:
        values = {figure.name: figure.value for figure in result.figures}
        rate, psnr = values.get("rate"), values.get("psnr.pooled")
        measured = None if rate is None or psnr is None else (rate, psnr)
        models[result.entrant.label] = (result.history.rates, measured, result.history.validation)
    draw_comparison(path, models)
