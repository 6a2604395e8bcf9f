"""Commands on finished runs and models: one file per group; here the arguments that they share."""

from __future__ import annotations

from typing import Any

import typer

TARGET: Any = typer.Argument(metavar="TARGET", help="Folder of a run, of its checkpoint, or of a model.")
MODEL: Any = typer.Argument(
    metavar="MODEL", help="Folder of a run, of its checkpoint, or of a model; or owner/name on the hub."
)
CHECKPOINT: Any = typer.Option(help="Weights of: best, last or a step.", show_default="best")
DEVICE: Any = typer.Option(help="auto, cpu, cuda, cuda:N or mps.", show_default="the run's")
