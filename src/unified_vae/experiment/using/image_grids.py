"""Write pictures: a grid of many on one PNG, or a PNG each. A file is complete or absent."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageFont
from torch import Tensor

from unified_vae.api.images import unusable
from unified_vae.core.errors import ConfigError, EnvironmentProblem
from unified_vae.core.events import Observer
from unified_vae.data.sources.base import Quarantined
from unified_vae.training.sheets import SMALLEST, sheet, to_pixels, write_picture

MAX_IMAGES = 256
"""On one grid."""


class ImageGrid:
    """Collects the first images for a grid, so that many more can pass by."""

    def __init__(self, path: Path | None) -> None:
        """A grid that will be written to `path`; None for none."""
        self.path, self.count = path, 0
        self._pictures: list[np.ndarray] = []

    def add(self, images: Tensor) -> None:
        """Add images [n, channels, h, w] in [0, 1]."""
        room = MAX_IMAGES - self.count
        self.count += len(images)
        if self.path is not None and room > 0:
            self._pictures.append(to_pixels(images[:room]))

    def write(self, columns: int, caption: str, group: int, observer: Observer) -> list[str]:
        """Draw what was collected; returns a line about it, if there is a grid to be.

        Args:
            caption: its last parts, which end at commas, are dropped where the grid is too narrow for them.
            group: neighbors that belong together.
        """
        if self.path is None:
            return []
        if self.count > MAX_IMAGES:
            observer.notice(f"the sheet shows the first {MAX_IMAGES // group:,} of {self.count // group:,}")
        pictures = np.concatenate(self._pictures)
        width = columns * pictures.shape[2] * math.ceil(SMALLEST / pictures.shape[1])
        write_png(sheet(pictures, columns, fit_caption(caption, width), group), self.path)
        return [f"sheet: {self.path.as_posix()}"]


def fit_caption(caption: str, width: int) -> str:
    """As many of a caption's parts, from the first on, as fit into `width` pixels; parts end at commas."""
    font = ImageFont.load_default(12)
    while font.getlength(caption) > width and ", " in caption:
        caption = caption.rpartition(", ")[0]
    return caption


def check_outputs(
    sheet: Path | None, folder: Path | None, written: Iterable[Path | None] = (), read: Sequence[Path] = ()
) -> None:
    """Refuse outputs that cannot be meant, before anything is computed.

    Args:
        sheet: a PNG of all; None for none.
        folder: for a PNG each; None for none.
        written: further files that will be written; None for none.
        read: files that must not be written over.

    Raises:
        ConfigError: a wrong suffix, a file where a folder is to be, or one of the files to be read.
    """
    if sheet is not None:
        check_suffix(sheet, (".png",), "--sheet")
    if folder is not None and folder.exists() and not folder.is_dir():
        raise ConfigError(f"--folder {folder} is a file: name a folder")
    originals = {path.resolve() for path in read}
    for path in (sheet, *written):
        if path is not None and path.resolve() in originals:
            raise ConfigError(f"{path} is one of the files to be read and would be overwritten: name another place")


def check_suffix(path: Path, suffixes: tuple[str, ...], option: str) -> None:
    """Raise ConfigError where a file's name does not end as its kind does."""
    if path.suffix.lower() not in suffixes:
        raise ConfigError(f"{option} {path}: the name of the file ends in {' or '.join(suffixes)}")
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a folder: name a file")


def report_left_out(left_out: Sequence[Quarantined], count: int, observer: Observer) -> str:
    """Name each of `count` files that could not be used; returns the error that the command ends with, or ""."""
    for bad in left_out:
        observer.notice(f"left out: {bad.format_line()}")
    return f"{unusable(left_out, count)}; the others are done" if left_out else ""


def write_png(picture: Image.Image, path: Path) -> Path:
    """Write a PNG and the folders above it; returns `path`.

    Raises:
        EnvironmentProblem: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_picture(picture, path)
    except OSError as problem:
        raise EnvironmentProblem(f"{path} cannot be written ({problem.strerror}): name another place") from problem
