"""The verb `evaluate`: a model's figures, each with its interval, evaluator, resolution and count."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unified_vae.cli.door import Job
from unified_vae.cli.start import show, to_screen
from unified_vae.cli.text import number, table, wrapped
from unified_vae.experiment.evaluation.request import DRAWS, SAMPLES, EvaluateRequest, Group, Settings, Weights

if TYPE_CHECKING:
    from unified_vae.experiment.evaluation.evaluate import Evaluation
    from unified_vae.experiment.evaluation.figure import Figure

Target = Annotated[Path, typer.Argument(metavar="TARGET", help="Folder of a run, of its checkpoint, or of a model.")]
Data = Annotated[
    str | None,
    typer.Option(
        help="Other images, all of them; a model without its run needs it.", show_default="the run's validation"
    ),
]
Checkpoint = Annotated[str | None, typer.Option(help="Weights of: best, last or a step.", show_default="best")]
Which = Annotated[
    Weights | None, typer.Option(help="Averaged (ema) or as stepped (raw).", show_default="both where there are both")
]
Samples = Annotated[
    int | None,
    typer.Option(min=2, help="New pictures to draw.", show_default=f"as many as images, at most {SAMPLES:,}"),
]
MaxImages = Annotated[int | None, typer.Option(min=2, help="Look at no more images.", show_default="all")]
Draws = Annotated[int, typer.Option(min=1, help="Latents an image for the bounds on the likelihood.")]
Skip = Annotated[list[Group] | None, typer.Option(help="Leave a group of metrics out; may be given again.")]
Inception = Annotated[
    Path | None,
    typer.Option(help="File of Inception's weights, for FID and others.", show_default="the download cache"),
]
Report = Annotated[Path | None, typer.Option("--json", help="File of the report.", show_default="RUN/evaluation.json")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", show_default="the run's")]
Seed = Annotated[int, typer.Option(help="Of samples, patches and resamples.")]

HEADINGS = {
    Group.RECONSTRUCTION: "reconstruction",
    Group.LATENTS: "latents",
    Group.LIKELIHOOD: "likelihood",
    Group.SAMPLES: "new pictures",
    Group.FACTORS: "disentanglement",
}


def evaluate(
    target: Target,
    data: Data = None,
    checkpoint: Checkpoint = None,
    weights: Which = None,
    samples: Samples = None,
    max_images: MaxImages = None,
    draws: Draws = DRAWS,
    skip: Skip = None,
    inception: Inception = None,
    json: Report = None,
    device: Device = None,
    seed: Seed = 0,
) -> Job:
    """Measure a model: likeness, likelihood, samples, latents, each with a 95 % interval."""
    settings = Settings(samples, max_images, draws, frozenset(skip or ()), inception, device, seed)
    return functools.partial(_evaluate, EvaluateRequest(target, data, checkpoint, weights, json, settings))


def _evaluate(request: EvaluateRequest, command: str) -> int:
    from unified_vae.experiment.evaluation.evaluate import evaluate  # imports torch: seconds

    watcher = to_screen()
    try:
        found = evaluate(request, watcher)
    finally:
        watcher.close()
    return show(report_lines(found))


def report_lines(found: Evaluation) -> Iterator[str]:
    """A table for each set of weights, what is missing below it."""
    yield ""
    yield from wrapped(f"evaluation of {found.name}", "  ")
    yield from wrapped(f"images: {found.images}", "  ")
    for weights, figures in found.figures.items():
        yield ""
        yield {"ema": "averaged weights (EMA)", "raw": "raw weights"}[weights.value]
        yield from _tables(figures)
        yield from missing(figures)
    yield ""
    yield from (line for note in found.notes for line in wrapped(f"note: {note}", "  "))
    yield from wrapped(f"report: {found.file.as_posix()}", "  ")


def _tables(figures: Sequence[Figure]) -> Iterator[str]:
    """One table, in which the groups' headings stand between the rows; below it, who measured."""
    rows: list[Sequence[str]] = [("metric", "value", "95 % interval", "unit", "better", "images", "by")]
    numbers: dict[str, int] = {}
    for group, heading in HEADINGS.items():
        own = [figure for figure in figures if figure.group is group and not figure.missing]
        rows += [(heading.upper(), *[""] * 6)] if own else []
        for figure in own:
            words = "; ".join(part for part in (figure.evaluator, figure.resolution, figure.note) if part)
            rows.append(_cells(figure, numbers.setdefault(words, len(numbers) + 1)))
    yield from table(rows)
    for words, place in numbers.items():
        yield from wrapped(f"  [{place}] {words}", "      ")


def _cells(figure: Figure, place: int) -> tuple[str, ...]:
    assert figure.value is not None
    limits = "" if figure.interval is None else f"{number(figure.interval.low)} to {number(figure.interval.high)}"
    head = (figure.title, number(figure.value), limits)
    return (*head, figure.unit, figure.better, f"{figure.images:,}", f"[{place}]")


def missing(figures: Iterable[Figure]) -> Iterator[str]:
    """Metrics that share a reason share its line."""
    reasons: dict[str, dict[str, None]] = {}
    for figure in figures:
        if figure.missing:
            reasons.setdefault(figure.missing, {})[figure.title] = None
    for why, titles in reasons.items():
        yield from wrapped(f"not available: {'; '.join(titles)}: {why}", "    ")
