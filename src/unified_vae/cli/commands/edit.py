"""The verb `edit`: change an attribute that labels name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from unified_vae.cli.commands import Checkpoint, Device, Model
from unified_vae.console import open_console, show, table, wrapped
from unified_vae.core.errors import ConfigError, DataError


def edit(
    model: Model,
    images: Annotated[
        list[Path] | None,
        Argument(metavar="[IMAGES...]", help="Files and folders to edit.", show_default="some of the labeled images"),
    ] = None,
    *,
    labels: Annotated[
        str,
        Option(help="A folder with a folder per class, builtin, or a table like CelebA's: name, then -1 or 0 and 1."),
    ],
    data: Annotated[str | None, Option(help="The images that a table names.", show_default="the run's")] = None,
    attribute: Annotated[str | None, Option(help="What to change, as --list names it.", show_default="none")] = None,
    strength: Annotated[str, Option(help="From..to; 0 changes nothing, 1 is the attribute in full.")] = "-3..3",
    columns: Annotated[int, Option(min=2, max=25, help="Strengths on the sheet.")] = 7,
    sheet: Annotated[Path, Option(metavar="FILE.png", help="Each image at each strength.")] = Path("edit.png"),
    directions: Annotated[Path, Option(help="The directions of all attributes, .safetensors and .json.")] = Path(
        "directions.safetensors"
    ),
    max_images: Annotated[int, Option(min=20, help="Labeled images to learn from.")] = 10_000,
    only_list: Annotated[
        bool, Option("--list", help="Only list the attributes and how well each is separated.")
    ] = False,
    checkpoint: Checkpoint = None,
    device: Device = None,
) -> None:
    """Change an attribute of images, learned from labels: a sheet of strengths."""
    if attribute is None and not only_list:
        raise ConfigError("name what to change with --attribute; --list shows what there is")
    strengths = spread(strength, columns)
    from unified_vae.analysis.edit import edit  # imports torch: seconds

    with open_console() as console:
        result = edit(
            model, images or (), labels, data=data, attribute=None if only_list else attribute, strengths=strengths,
            sheet=sheet, directions=directions, max_images=max_images, checkpoint=checkpoint, device=device,
            observer=console,
        )  # fmt: skip
    rows = [("attribute", "images", "separated from the rest by the latents (chance: 50%)"), *result.rows]
    lines = [f"learned from {result.images:,} labeled images", *table(rows)]
    show([*lines, *(line for path in result.files for line in wrapped(f"written: {path.as_posix()}", "  "))])
    if result.problem:
        raise DataError(result.problem)


def spread(text: str, columns: int) -> list[float]:
    """Return evenly spaced strengths of a range such as `-3..3`; raises ConfigError."""
    match = re.fullmatch(r"\s*([-+]?[0-9.]+?)\s*\.\.\s*([-+]?[0-9.]+)\s*", text)
    try:
        low, high = (float(part) for part in match.groups()) if match else (float(text), float(text))
    except ValueError:
        raise ConfigError(f"--strength {text!r}: give a range such as -3..3, or one number") from None
    if low == high:
        return [low]
    return [round(low + (high - low) * column / (columns - 1), 6) for column in range(columns)]
