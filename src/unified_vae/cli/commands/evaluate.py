"""The verb `evaluate`: the metrics of one model, or of several side by side with their differences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from unified_vae.cli.commands import Checkpoint, Device
from unified_vae.console import number, open_console, show, table, wrapped
from unified_vae.evaluation import Group, Weights

if TYPE_CHECKING:
    from unified_vae.evaluation.bootstrap import MetricResult
    from unified_vae.evaluation.evaluate import Evaluation

HEADINGS: dict[Group, str] = {
    Group.RECONSTRUCTION: "RECONSTRUCTION",
    Group.LATENTS: "LATENTS",
    Group.LIKELIHOOD: "LIKELIHOOD",
    Group.SAMPLES: "NEW IMAGES",
    Group.FACTORS: "DISENTANGLEMENT",
}
SIGNS = {"better": " +", "worse": " -", "": ""}
LEGEND = (
    "Behind ±: half of the 95 % interval. In brackets: the difference from the first model with its 95 % interval, "
    "from the same resamples of the same images; + better, - worse, none: no clear difference."
)


def evaluate(
    targets: Annotated[
        list[Path], Argument(metavar="TARGET...", help="Folders of runs, of their checkpoints, or of models.")
    ],
    data: Annotated[
        str | None,
        Option(
            help="Images to measure on, all of them; a model without its run needs it.",
            show_default="the run's validation images",
        ),
    ] = None,
    checkpoint: Checkpoint = None,
    weights: Annotated[
        Weights | None,
        Option(
            help="Averaged (ema) or as stepped (raw).", show_default="both where one model has both; of several ema"
        ),
    ] = None,
    samples: Annotated[
        int | None, Option(min=2, help="New images to draw.", show_default="as many as images, at most 2,000")
    ] = None,
    max_images: Annotated[int | None, Option(min=2, help="Use no more images.", show_default="all")] = None,
    draws: Annotated[int, Option(min=1, help="Latents per image for the bounds on the likelihood.")] = 16,
    skip: Annotated[list[Group] | None, Option(help="Leave a group of metrics out; may be given again.")] = None,
    inception: Annotated[
        Path | None, Option(help="File of Inception's weights, for FID and others.", show_default="the download cache")
    ] = None,
    json: Annotated[
        Path | None,
        Option(help="File of the report.", show_default="RUN/evaluation.json, of several in the folder --output"),
    ] = None,
    output: Annotated[
        Path | None, Option(help="Folder for the files of several models.", show_default="comparison")
    ] = None,
    device: Device = None,
    seed: Annotated[int, Option(help="Of samples, patches and resamples.")] = 0,
) -> None:
    """Measure models: likeness, likelihood, samples, latents, each with a 95 % interval; several side by side."""

    from unified_vae.evaluation.evaluate import evaluate  # imports torch: seconds

    with open_console() as console:
        evaluation = evaluate(
            targets, data=data, checkpoint=checkpoint, weights=weights, samples=samples, max_images=max_images,
            draws=draws, skip=skip or (), inception=inception, report=json, output=output, device=device, seed=seed,
            observer=console,
        )  # fmt: skip
    show(report_lines(evaluation))


def report_lines(evaluation: Evaluation) -> Iterator[str]:
    """Yield the tables, what is missing below them, and the files."""
    single = "sheet" not in evaluation.files
    yield ""
    for label, name in evaluation.names.items():
        if single and label == "raw" and len(evaluation.names) > 1:
            continue
        yield from wrapped(f"evaluation of {name}" if single else f"{label}: {name}", "  ")
    yield from wrapped(f"images: {evaluation.images}", "  ")
    if single:
        for weights, results in evaluation.results.items():
            yield ""
            yield {"ema": "averaged weights (EMA)", "raw": "raw weights"}[weights]
            yield from _single_table(results)
            yield from _missing(results)
    else:
        yield ""
        yield from _comparison_table(evaluation)
        yield from wrapped(LEGEND, "  ")
        yield from _missing([result for results in evaluation.results.values() for result in results])
    yield ""
    yield from (line for note in evaluation.notes for line in wrapped(f"note: {note}", "  "))
    for kind, path in evaluation.files.items():
        yield from wrapped(f"{kind}: {path.as_posix()}", "  ")


def _single_table(results: Sequence[MetricResult]) -> Iterator[str]:
    """One table, with the groups' headings between the rows; below it, who measured."""
    rows: list[Sequence[str]] = [("metric", "value", "95 % interval", "unit", "better", "images", "by")]
    footnotes: dict[str, int] = {}
    for group, heading in HEADINGS.items():
        measured = [result for result in results if result.group == group and result.value is not None]
        rows += [(heading, *[""] * 6)] if measured else []
        for result in measured:
            assert result.value is not None
            words = "; ".join(part for part in (result.evaluator, result.resolution, result.note) if part)
            footnote = footnotes.setdefault(words, len(footnotes) + 1)
            limits = "" if result.interval is None else " to ".join(map(number, result.interval))
            head = (result.title, number(result.value), limits, result.unit, result.better)
            rows.append((*head, f"{result.images:,}", f"[{footnote}]"))
    yield from table(rows)
    for words, footnote in footnotes.items():
        yield from wrapped(f"  [{footnote}] {words}", "      ")


def _comparison_table(evaluation: Evaluation) -> list[str]:
    """One row per metric, one column per model."""
    tables = {label: {result.name: result for result in results} for label, results in evaluation.results.items()}
    first = next(iter(evaluation.results.values()))
    rows: list[Sequence[str]] = [("metric", "unit", "better", *tables)]
    for group, heading in HEADINGS.items():
        measured = [
            result
            for result in first
            if result.group == group and any(results[result.name].value is not None for results in tables.values())
        ]
        rows += [(heading, "", "", *("" for _ in tables))] if measured else []
        for result in measured:
            row = [result.title, result.unit, result.better]
            for label, results in tables.items():
                value, interval = results[result.name].value, results[result.name].interval
                text = "not available" if value is None else number(value)
                if interval is not None:
                    text += f" ± {(interval[1] - interval[0]) / 2:.2g}"
                difference = evaluation.differences.get(label, {}).get(result.name)
                if value is not None and difference is not None:
                    limits = "" if difference.interval is None else ": {:+.3g} to {:+.3g}".format(*difference.interval)
                    text += f" ({difference.value:+.3g}{limits}){SIGNS[difference.verdict]}"
                row.append(text)
            rows.append(row)
    return table(rows)


def _missing(results: Iterable[MetricResult]) -> Iterator[str]:
    """Metrics that share a reason share its line."""
    titles: dict[str, dict[str, None]] = {}
    for result in results:
        if result.missing:
            titles.setdefault(result.missing, {})[result.title] = None
    for reason, names in titles.items():
        yield from wrapped(f"not available: {'; '.join(names)}: {reason}", "    ")
