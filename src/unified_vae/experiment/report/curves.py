"""Which curves are drawn of one run, and of several."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from unified_vae.experiment.report.chart import Level, Line, Points, chart
from unified_vae.experiment.report.figures import Time, latents
from unified_vae.experiment.report.html import Html
from unified_vae.experiment.report.run_files import Row, RunFiles, entry, number

STEPS = "optimizer steps"
RATE, PSNR = "KL, nats an image", "PSNR, dB"
Labelled = Sequence[tuple[str, RunFiles]]


def course(rows: Sequence[Row], name: str, at: str = "step") -> Points:
    """(step, value) of the rows that have both."""
    return [(row[at], row[name]) for row in rows if number(row.get(at)) and number(row.get(name))]


def of_one(run: RunFiles) -> list[Html]:
    """PSNR, loss, KL, active units, learning rate and speed over the steps."""
    both = (("training", run.training), ("validation", run.validations))

    def pair(name: str) -> list[Line]:
        return [Line(label, course(rows, name)) for label, rows in both]

    psnr = [Line("training", _decibels(run)), Line("validation", course(run.validations, "psnr"))]
    units = [Line("validation", course(run.validations, "active_units"))]
    return _there(
        chart("PSNR", STEPS, "dB", psnr, _levels(("PCA", run.preflight.get("psnr_pca"))), 0),
        chart("Loss, as minimised", STEPS, "nats a pixel value", pair("loss.total"), x_from=0),
        chart("KL", STEPS, "nats an image", pair("rate.nats"), _levels(("linear VAE", _predicted(run, "rate"))), 0),
        chart("Active units", STEPS, "latents", units, _levels(("all", latents(run))), 0, 0),
        chart(
            "Learning rate",
            STEPS,
            "of the optimizer",
            [Line("training", course(run.training, "lr"))],
            x_from=0,
            y_from=0,
        ),
        chart(
            "Speed",
            STEPS,
            "images a second",
            [Line("training", course(run.timing, "images_per_second"))],
            x_from=0,
            y_from=0,
        ),
    )


def of_several(runs: Labelled) -> list[Html]:
    """The validations of all runs, over steps and over time."""

    def each(name: str) -> list[Line]:
        return [Line(label, course(run.validations, name)) for label, run in runs]

    return _there(
        chart("PSNR", STEPS, "dB", each("psnr"), x_from=0),
        chart("PSNR over time", "hours", "dB", [Line(label, _over_time(run)) for label, run in runs], x_from=0),
        chart("KL", STEPS, "nats an image", each("rate.nats"), x_from=0),
        chart("Active units", STEPS, "latents", each("active_units"), x_from=0, y_from=0),
        chart("Sharpness", STEPS, "detail kept", each("sharpness"), x_from=0, y_from=0),
        rate_distortion(runs),
    )


def rate_distortion(runs: Labelled, predicted: bool = False) -> Html | None:
    """The path of the validations on the plane of rate and distortion (Alemi et al. 2018, arXiv 1711.00464).

    The distortion is told as PSNR, which is comparable whatever was minimised; up and to the left is better.

    Args:
        predicted: with the point that linear theory names.
    """
    lines = [Line(label, [(row["rate.nats"], row["psnr"]) for row in _measured(run)]) for label, run in runs]
    if predicted:
        lines += [Line("linear VAE", _points(_predicted(run, "rate"), _predicted(run, "psnr"))) for _, run in runs]
    return chart("Rate and distortion", RATE, PSNR, lines)


def _measured(run: RunFiles) -> list[Row]:
    return [row for row in run.validations if number(row.get("rate.nats")) and number(row.get("psnr"))]


def _predicted(run: RunFiles, name: str) -> float | None:
    found = entry(run.preflight, "predicted", name)
    return found if number(found) else None


def _points(x: float | None, y: float | None) -> Points:
    return [] if x is None or y is None else [(x, y)]


def _levels(*pairs: tuple[str, float | None]) -> list[Level]:
    return [Level(label, value) for label, value in pairs if value is not None and number(value)]


def _decibels(run: RunFiles) -> Points:
    return [(step, -10 * math.log10(error)) for step, error in course(run.training, "loss.mse") if error > 0]


def _over_time(run: RunFiles) -> Points:
    hours = _clock(Time.of(run).clock)
    return [(hours(step), psnr) for step, psnr in course(run.validations, "psnr")]


def _clock(known: Points) -> Callable[[float], float]:
    """Hours until a step: those of the last row up to it; not a number where there is no row at all."""

    def hours(step: float) -> float:
        before = [seconds for at, seconds in known if at <= step]
        return max(before) / 3600 if len(known) > 1 else math.nan

    return hours


def _there(*charts: Html | None) -> list[Html]:
    return [each for each in charts if each is not None]
