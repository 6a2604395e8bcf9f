"""The side door, `train_unified.py --loss-preset ...`: words to a plan, every preset chosen one by one."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from typing import Annotated

import typer

from unified_vae.cli import options
from unified_vae.cli.door import Job, enter
from unified_vae.cli.listing import listing_lines
from unified_vae.cli.start import show, start
from unified_vae.experiment.planning.plan import USUAL_PRESETS, plan_presets

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def _usual(kind: str) -> str:
    return USUAL_PRESETS[kind]


@app.command()
def train_unified(
    loss_preset: Annotated[str | None, typer.Option(help="What is minimised.", show_default=_usual("loss"))] = None,
    training_preset: Annotated[
        str | None, typer.Option(help="How long and how fast.", show_default=_usual("training"))
    ] = None,
    model_preset: Annotated[
        str | None, typer.Option(help="Image size, latents, width.", show_default=_usual("model"))
    ] = None,
    dataset_preset: Annotated[str | None, typer.Option(help="How many images.", show_default=_usual("dataset"))] = None,
    augment_preset: Annotated[
        str | None, typer.Option(help="Random changes of the training images.", show_default=_usual("augment"))
    ] = None,
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
    """Train an image VAE from five presets: loss, training, model, dataset and augment."""
    chosen = {
        "loss": loss_preset,
        "training": training_preset,
        "model": model_preset,
        "dataset": dataset_preset,
        "augment": augment_preset,
    }
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
    return functools.partial(_run, chosen, shared)


def _run(chosen: Mapping[str, str | None], shared: options.Shared, command: str) -> int:
    book = shared.book()
    if shared.list_presets:
        return show(listing_lines(book))
    return start(plan_presets(book, chosen, shared.command_line(), shared.run_dir), shared, command)


def main() -> int:
    """Run `train_unified.py` with the words of the command line; gives the exit code. Without any it shows its help."""
    return enter(app, "train_unified.py", None if sys.argv[1:] else ["--help"])
