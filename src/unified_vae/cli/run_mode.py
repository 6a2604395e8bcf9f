"""The front door, `train.py --mode MODE`: words to a plan."""

from __future__ import annotations

import functools
import sys
from typing import Annotated

import typer

from unified_vae.cli import options
from unified_vae.cli.door import Job, enter
from unified_vae.cli.listing import listing_lines, mode_lines
from unified_vae.cli.start import show, start
from unified_vae.experiment.planning.plan import plan_mode, plan_record

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def train(
    mode: Annotated[str | None, typer.Option(help="What to train; --list-presets shows all modes.")] = None,
    data: options.Data = None,
    run_dir: options.RunDir = None,
    resume: options.Resume = True,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    lr: options.LearningRate = None,
    beta: options.Beta = None,
    seed: options.Seed = None,
    device: options.Device = None,
    precision: options.Precision = None,
    assignments: options.Assignments = None,
    config: options.ConfigFile = None,
    dry_run: options.DryRun = False,
    profile: options.Profile = False,
    list_presets: options.ListPresets = False,
) -> Job:
    """Train an image VAE by a named mode, e.g. --mode fast_high_quality --data photos/."""
    flags = {
        "--data": data,
        "--epochs": epochs,
        "--batch-size": options.number_or_word(batch_size),
        "--lr": lr,
        "--beta": beta,
        "--seed": seed,
        "--device": device,
        "--precision": precision,
    }
    shared = options.Shared(flags, assignments or [], run_dir, resume, config, dry_run, list_presets, profile)
    return functools.partial(_run, mode, shared)


def _run(mode: str | None, shared: options.Shared, command: str) -> int:
    book = shared.book()
    if shared.list_presets:
        return show(listing_lines(book))
    if mode is not None:
        return start(plan_mode(book, mode, shared.command_line(), shared.run_dir), shared, command)
    if book.record is not None:
        return start(plan_record(book, shared.command_line(), shared.run_dir), shared, command)
    print("\n".join(["error: --mode is missing; choose one:", "", *mode_lines(book)]), file=sys.stderr)
    print("\nStart with: uv run train.py --mode quick_test", file=sys.stderr)
    return 2


def main() -> int:
    """Run `train.py` with the words of the command line; gives the exit code."""
    return enter(app, "train.py")
