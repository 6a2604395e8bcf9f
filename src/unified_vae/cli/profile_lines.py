"""What a model costs and where the time of a step goes, in lines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from unified_vae.cli.run_lines import memory_text
from unified_vae.cli.text import gibibytes, number, table, wrapped

if TYPE_CHECKING:
    from unified_vae.experiment.model_figures import ModelFigures
    from unified_vae.pipeline.profile import Profile


def model_lines(figures: ModelFigures, batch_size: int | None, pieces: int) -> list[str]:
    """Parameters, operations and memory.

    Args:
        batch_size: None where it is not known yet.
        pieces: micro-batches of a batch.
    """
    fixed = f", {figures.fixed:,} of them the fixed PCA skip's" if figures.fixed else ""
    rows = [
        ("parameters", f"{figures.parameters:,}{fixed}"),
        ("operations", f"{giga(figures.forward_flops)} an image forward, {giga(figures.step_flops)} in a step"),
    ]
    if batch_size is not None:
        at_once = -(-batch_size // pieces)
        size = gibibytes(figures.step_bytes(at_once))
        rows.append(("memory", f"about {size} GiB for a step of {at_once} images at once in fp32 on one device"))
    return ["", "model, without the networks of loss terms", *table(rows)]


def giga(flops: float) -> str:
    """`1.47 GFLOP`."""
    return f"{number(flops / 1e9)} GFLOP"


def profile_lines(found: Profile, folder: Path) -> list[str]:
    """The table of a step, what it reaches, and where the trace lies."""
    whole = sum(found.parts.values())
    rows = [("part of a step", "ms", "share")]
    rows += [(name, f"{1e3 * taken:9.3f}", f"{taken / whole:6.1%}") for name, taken in found.parts.items()]
    rows.append(("all parts, each waited for", f"{1e3 * whole:9.3f}", "100.0%"))
    share = found.flops / found.peak_flops
    facts = [
        ("step", f"{1e3 * found.step_seconds:.3f} ms for {found.batch_size} images, median of {found.steps} steps"),
        ("speed", f"{number(found.batch_size / found.step_seconds)} img/s"),
        ("operations", f"{giga(found.step_flops)} a step, {giga(found.flops)}/s"),
        ("machine's best", f"{giga(found.peak_flops)}/s at products of matrices; a step reaches {share:.0%} of it"),
        ("memory", memory_text(found.memory).removeprefix("mem ")),
        ("device", found.device),
    ]
    written = f"written to {folder.as_posix()}: profile.json, and trace.json for chrome://tracing or ui.perfetto.dev"
    return ["", *table(rows), "", *table(facts), "", *wrapped(written, "  "), "--profile: nothing was trained"]
