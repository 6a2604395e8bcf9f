"""Commands on finished runs and models: one file per group; here the arguments that they share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

MODEL: Any = Argument(
    metavar="MODEL", help="Folder of a run, of its checkpoint, or of a model; or owner/name on the hub."
)
Model = Annotated[Path, MODEL]
Checkpoint = Annotated[str | None, Option(help="Weights of: best, last or a step.", show_default="best")]
Device = Annotated[str | None, Option(help="auto, cpu, cuda, cuda:N or mps.", show_default="the run's")]
