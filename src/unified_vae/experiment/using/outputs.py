"""Where pictures go: a sheet, a folder of files. Each file is complete or absent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageFont
from torch import Tensor

from unified_vae.api.images import unusable
from unified_vae.core.errors import ConfigError, EnvironmentProblem
from unified_vae.data.records import Quarantined
from unified_vae.training.observers import Observer
from unified_vae.training.sheets import SMALLEST, sheet, to_pixels, write_picture

MOST_ON_A_SHEET = 256


@dataclass(frozen=True)
class Places:
    """What is to be written.

    Attributes:
        sheet: a PNG of all pictures; None for none.
        folder: for a PNG of each; None for none.
    """

    sheet: Path | None
    folder: Path | None

    def check(self) -> None:
        """Refuse names that cannot be meant, before anything is computed; raises ConfigError."""
        if self.sheet is not None:
            refuse_other_suffix(self.sheet, (".png",), "--sheet")
        if self.folder is not None and self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"--folder {self.folder} is a file: name a folder")


@dataclass
class Sheet:
    """Collects the first pictures for a sheet, so that many more can pass by."""

    path: Path | None
    pictures: list[np.ndarray] = field(default_factory=list)
    seen: int = 0

    def add(self, images: Tensor) -> None:
        """Take images [n, channels, h, w] in [0, 1]."""
        self.seen += len(images)
        room = MOST_ON_A_SHEET - sum(map(len, self.pictures))
        if self.path is not None and room > 0:
            self.pictures.append(to_pixels(images[:room]))

    def write(self, columns: int, caption: str, group: int, observer: Observer) -> list[Path]:
        """Draw what was collected; the path, if there is a sheet to be."""
        if self.path is None:
            return []
        if self.seen > MOST_ON_A_SHEET:
            observer.notice(f"the sheet shows the first {MOST_ON_A_SHEET // group:,} of {self.seen // group:,}")
        pictures = np.concatenate(self.pictures)
        width = columns * pictures.shape[2] * math.ceil(SMALLEST / pictures.shape[1])
        return [write_png(sheet(pictures, columns, fitting(caption, width), group), self.path)]


def fitting(caption: str, width: int) -> str:
    """As many of a caption's parts, from the first on, as fit into `width` pixels; parts end at commas."""
    font = ImageFont.load_default(12)
    while font.getlength(caption) > width and ", " in caption:
        caption = caption.rpartition(", ")[0]
    return caption


def refuse_other_suffix(path: Path, suffixes: tuple[str, ...], option: str) -> None:
    """Raise ConfigError where a file's name does not end as its kind does."""
    if path.suffix.lower() not in suffixes:
        raise ConfigError(f"{option} {path}: the name of the file ends in {' or '.join(suffixes)}")
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a folder: name a file")


def refuse_originals(written: Sequence[Path | None], read: Sequence[Path]) -> None:
    """Raise ConfigError where something would be written over a file that is to be read; None is not written."""
    originals = {path.resolve() for path in read}
    for path in written:
        if path is not None and path.resolve() in originals:
            raise ConfigError(f"{path} is one of the files to be read and would be overwritten: name another place")


def report_left_out(left_out: Sequence[Quarantined], count: int, observer: Observer) -> str:
    """Name each of `count` files that could not be used; returns the error that the command ends with, or ""."""
    for bad in left_out:
        observer.notice(f"left out: {bad.told()}")
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
