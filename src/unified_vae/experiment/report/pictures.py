"""Sheets of a run's folder as pictures inside a page, of a size that the page can bear."""

from __future__ import annotations

import base64
import io
import math
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from unified_vae.core.durable import reason
from unified_vae.core.printable import printable
from unified_vae.experiment.report.html import Html, tag
from unified_vae.experiment.report.run_files import RunFiles

ROOM = 1_200_000
"""Bytes of all pictures of a page; as text they are a third longer."""
WIDEST = 1400  # pixels; twice what the page shows on a screen
MOST_PIXELS = 80_000_000  # of a picture that is opened at all
SMALLEST = 64  # pixels that a picture is not made smaller than
QUALITY, LOWER_QUALITY = 88, 65
_EPOCH = re.compile(r"epoch-(\d+)-(.+)\.png")


@dataclass(frozen=True)
class Sheet:
    """A picture of a run, and what it shows."""

    path: Path
    words: str


def sheets(run: RunFiles) -> list[Sheet]:
    """The newest of each kind: reconstructions, samples, a walk."""
    final = run.folder.samples / "final-samples.png"
    newest = _newest(run.folder.samples)
    found = []
    if (each := newest.get("reconstructions")) is not None:
        found.append(Sheet(each[1], f"Validation images, each beside its reconstruction, after epoch {each[0]:,}"))
    if final.is_file():
        found.append(Sheet(final, "New pictures, drawn from the priors that their captions name"))
    elif (each := newest.get("samples")) is not None:
        found.append(Sheet(each[1], f"New pictures, after epoch {each[0]:,}"))
    if (each := newest.get("interpolation")) is not None:
        found.append(Sheet(each[1], f"Walks through the latents from one image to another, after epoch {each[0]:,}"))
    return found


def _newest(folder: Path) -> dict[str, tuple[int, Path]]:
    """Kind -> (epoch, file)."""
    found: dict[str, tuple[int, Path]] = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        if match := _EPOCH.fullmatch(path.name):
            epoch, kind = int(match[1]), match[2]
            found[kind] = max(found.get(kind, (epoch, path)), (epoch, path))
    return found


def shown(sheet: Sheet, room: int) -> Html:
    """A figure with its picture in at most `room` bytes; a sentence where it cannot be read."""
    name = printable(sheet.path.name)
    try:
        kind, data, (width, height) = embedded(sheet.path, room)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as problem:
        return tag("p", f"The picture {name} cannot be read ({reason(problem)}).", class_="note")
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return tag(
        "figure",
        tag("img", src=source, alt=f"{sheet.words}.", width=width, height=height),
        tag("figcaption", f"{sheet.words}. ", tag("small", name)),
        class_="sheet",
    )


def embedded(path: Path, room: int) -> tuple[str, bytes, tuple[int, int]]:
    """(format, bytes, size) of a picture: as it is where that fits, else as WebP, smaller the less room there is.

    Raises:
        OSError, SyntaxError, ValueError: it is damaged, or too large to be opened.
    """
    with Image.open(path) as opened:
        if opened.width * opened.height > MOST_PIXELS:
            raise ValueError(f"{opened.width:,} x {opened.height:,} pixels are too many")
        picture = opened.convert("RGB")
        as_it_is = opened.format == "PNG" and path.stat().st_size <= room and opened.width <= WIDEST
    if as_it_is:
        return "png", path.read_bytes(), picture.size
    picture.thumbnail((WIDEST, WIDEST * 4), Image.Resampling.LANCZOS)
    data = _webp(picture, QUALITY)
    if len(data) > room:
        data = _webp(picture, LOWER_QUALITY)
    while len(data) > room and max(picture.size) > SMALLEST:
        part = max(0.3, 0.95 * math.sqrt(room / len(data)))
        picture.thumbnail((picture.width * part, picture.height * part), Image.Resampling.LANCZOS)
        data = _webp(picture, LOWER_QUALITY)
    return "webp", data, picture.size


def _webp(picture: Image.Image, quality: int) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format="WEBP", quality=quality, method=2)
    return stream.getvalue()
