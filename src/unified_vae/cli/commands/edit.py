"""The verb `edit`: change an attribute that labels name."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from unified_vae.cli.commands.encode import Checkpoint, Device, Model
from unified_vae.cli.door import Job
from unified_vae.cli.start import show, to_screen
from unified_vae.cli.text import table, wrapped
from unified_vae.core.errors import ConfigError, DataError

Images = Annotated[
    list[Path] | None,
    typer.Argument(metavar="[IMAGES...]", help="Files and folders to edit.", show_default="some of the labeled"),
]
Labels = Annotated[
    str,
    typer.Option(help="A folder with a folder a class, builtin, or a table like CelebA's: name, then -1 or 0 and 1."),
]
Data = Annotated[str | None, typer.Option(help="The images that a table names.", show_default="the run's")]
Attribute = Annotated[str | None, typer.Option(help="What to change, as --list names it.", show_default="none")]
Strength = Annotated[str, typer.Option(help="From..to; 0 changes nothing, 1 is the attribute in full.")]
Columns = Annotated[int, typer.Option(min=2, max=25, help="Strengths on the sheet.")]
Sheet = Annotated[Path, typer.Option(metavar="FILE.png", help="Each image at each strength.")]
File = Annotated[Path, typer.Option("--directions", help="The directions of all attributes, .safetensors and .json.")]
AtMost = Annotated[int, typer.Option("--max-images", min=20, help="Labeled images to learn from.")]
Only = Annotated[bool, typer.Option("--list", help="Only list the attributes and how well each is separated.")]


def edit(
    model: Model,
    images: Images = None,
    *,
    labels: Labels,
    data: Data = None,
    attribute: Attribute = None,
    strength: Strength = "-3..3",
    columns: Columns = 7,
    sheet: Sheet = Path("edit.png"),
    directions: File = Path("directions.safetensors"),
    max_images: AtMost = 10_000,
    only_list: Only = False,
    checkpoint: Checkpoint = None,
    device: Device = None,
) -> Job:
    """Change an attribute of images, learnt from labels: a sheet of strengths."""
    if attribute is None and not only_list:
        raise ConfigError("name what to change with --attribute; --list shows what there is")
    word, strengths = None if only_list else attribute, spread(strength, columns)

    def work(command: str) -> int:
        from unified_vae.experiment.using.edit import edit  # imports torch: seconds

        with closing(to_screen()) as screen:
            result = edit(
                model, images or (), labels, data=data, attribute=word, strengths=strengths, sheet=sheet,
                directions=directions, max_images=max_images, checkpoint=checkpoint, device=device, observer=screen,
            )  # fmt: skip
        rows = [("attribute", "images", "separated from the rest by the latents (guessing: 50%)"), *result.rows]
        lines = [f"learned from {result.images:,} labeled images", *table(rows)]
        code = show([*lines, *(line for path in result.files for line in wrapped(f"written: {path.as_posix()}", "  "))])
        if result.problem:
            raise DataError(result.problem)
        return code

    return work


def spread(text: str, columns: int) -> list[float]:
    """So many strengths of a range such as `-3..3`, evenly; raises ConfigError."""
    match = re.fullmatch(r"\s*([-+]?[0-9.]+?)\s*\.\.\s*([-+]?[0-9.]+)\s*", text)
    try:
        low, high = (float(part) for part in match.groups()) if match else (float(text), float(text))
    except ValueError:
        raise ConfigError(f"--strength {text!r}: give a range such as -3..3, or one number") from None
    if low == high:
        return [low]
    return [round(low + (high - low) * column / (columns - 1), 6) for column in range(columns)]
