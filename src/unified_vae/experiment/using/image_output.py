"""Where decoded images go: a folder of PNG files by name, one array, or one sheet to look at."""

from __future__ import annotations

import hashlib
import io
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
from PIL import Image

from unified_vae.core.durable import sync_file, sync_folder
from unified_vae.core.errors import ConfigError, DataError
from unified_vae.data.sources.layout import READABLE
from unified_vae.experiment.using.stage import refuse_existing
from unified_vae.training.sheets import sheet, write_picture

Pixels = npt.NDArray[np.uint8]
ON_A_SHEET = 256
_WRITERS = 2
_COMPRESSION = 1  # of 9: files are a tenth larger and take a quarter of the time
_LONGEST_PART = 200  # bytes
_FORBIDDEN = re.compile(r'[<>:"|?*\x00-\x1f\x7f]')  # in names on Windows
_DRIVE = re.compile(r"^([A-Za-z]:)+")


class ImageOutput(ABC):
    """Takes images in order.

    Attributes:
        at_most: how many images it takes; None is any number.
        resumes: whether rows before a saved one need not be given again.
    """

    at_most: int | None = None
    resumes = True

    @abstractmethod
    def put(self, first: int, pixels: Pixels) -> None:
        """Images `first` and following: uint8 [n, h, w, channels]."""

    @abstractmethod
    def sync(self) -> None:
        """Wait until what was put is on the disk."""

    @abstractmethod
    def finish(self, target: Path) -> None:
        """Give the output its final name."""


def output_for(target: Path, stage: Path, names: Sequence[str], shape: tuple[int, int, int]) -> ImageOutput:
    """The output that `target` asks for by its name.

    Args:
        stage: folder for what is not finished.
        names: of the images, as paths without suffix.
        shape: of an image: height, width, channels.

    """
    match target.suffix.lower():
        case ".npy":
            return ArrayOutput(stage, len(names), shape)
        case ".png":
            return SheetOutput()
    return FolderOutput(stage, names)


def check_output(target: Path) -> None:
    """Raise ConfigError where images cannot go there."""
    if target.suffix.lower() not in ("", ".npy", ".png"):
        raise ConfigError(f"{target}: images go to a folder, which has no suffix, a .npy file, or a sheet, .png")
    if target.is_dir() and any(target.iterdir()):
        raise ConfigError(f"{target} is there already, and not empty: give another --output")
    if not target.is_dir():
        refuse_existing([target])


class FolderOutput(ImageOutput):
    """A PNG file an image. They are compressed and written beside the decoding."""

    def __init__(self, stage: Path, names: Sequence[str]) -> None:
        self.folder, self.names = stage / "images", names
        self.folder.mkdir(exist_ok=True)
        self._root = stage.resolve() / self.folder.name
        self._pool = ThreadPoolExecutor(_WRITERS)
        self._waiting: list[Future[None]] = []
        self._made: set[Path] = set()

    def put(self, first: int, pixels: Pixels) -> None:
        self._wait()
        for number, image in enumerate(pixels, start=first):
            path = self._place(self.names[number])
            if path.parent not in self._made:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._made.add(path.parent)
            self._waiting.append(self._pool.submit(_write_png, path, image))

    def _place(self, name: str) -> Path:
        """Where an image goes; asked of the disk, as a link may lie in a folder that was begun before.

        Raises:
            DataError: it is not in the folder.
        """
        path = self.folder / f"{name}.png"
        if not path.resolve().is_relative_to(self._root):
            raise DataError(
                f"{path} leads out of the folder of images: remove the link, and give the same command again"
            )
        return path

    def _wait(self) -> None:
        for future in self._waiting:
            future.result()
        self._waiting = []

    def sync(self) -> None:
        self._wait()
        if hasattr(os, "sync"):  # one call for thousands of small files
            os.sync()

    def finish(self, target: Path) -> None:
        self.sync()
        self._pool.shutdown()
        if target.is_dir():
            target.rmdir()  # it is empty: that was looked at before
        self.folder.replace(target)
        sync_folder(target.parent)


def _write_png(path: Path, image: Pixels) -> None:
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG", compress_level=_COMPRESSION)
    path.write_bytes(file.getvalue())


class ArrayOutput(ImageOutput):
    """One .npy file of uint8 [n, height, width, channels]."""

    def __init__(self, stage: Path, count: int, shape: tuple[int, int, int]) -> None:
        self.path = stage / "images.npy"
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)})
        self.offset, self.row_bytes = len(head.getvalue()), int(np.prod(shape))
        size = self.offset + count * self.row_bytes
        if not (self.path.is_file() and self.path.stat().st_size == size):
            with self.path.open("wb") as file:
                file.write(head.getvalue())
                file.truncate(size)
        self._file = self.path.open("r+b")

    def put(self, first: int, pixels: Pixels) -> None:
        self._file.seek(self.offset + first * self.row_bytes)
        self._file.write(np.ascontiguousarray(pixels).data)

    def sync(self) -> None:
        self._file.flush()
        sync_file(self.path)

    def finish(self, target: Path) -> None:
        self.sync()
        self._file.close()
        self.path.replace(target)
        sync_folder(target.parent)


class SheetOutput(ImageOutput):
    """One picture of the first images, for the eye."""

    at_most = ON_A_SHEET
    resumes = False

    def __init__(self) -> None:
        self._pixels: list[Pixels] = []

    def put(self, first: int, pixels: Pixels) -> None:
        self._pixels.append(pixels)

    def sync(self) -> None:
        return

    def finish(self, target: Path) -> None:
        pixels = np.concatenate(self._pixels)
        rgb = np.broadcast_to(pixels, (*pixels.shape[:3], 3))
        columns = min(len(rgb), 16, max(1, round(len(rgb) ** 0.5)))
        write_picture(sheet(rgb, columns, f"{len(rgb):,} decoded images"), target)


def file_names(ids: Sequence[str]) -> list[str]:
    """A path without suffix for each image, inside the folder whatever the name says, and no two the same.

    Letters of either case count as the same, as some disks have it.
    """
    seen: dict[str, int] = {}
    return [_unlike(_safe(name), seen) for name in ids]


def _safe(name: str) -> str:
    """Cut by hand: pathlib keeps the two slashes that a name begins with, and the path is then an absolute one."""
    *folders, file = name.replace("\\", "/").rstrip("/").split("/")
    if PurePosixPath(file).suffix.lower() in READABLE:
        file = PurePosixPath(file).stem
    parts = [_FORBIDDEN.sub("_", _DRIVE.sub("", part)).rstrip(". ") for part in (*folders, file)]
    return "/".join(_short(part) for part in parts if part not in ("", ".", "..")) or "image"


def _short(part: str) -> str:
    data = part.encode("utf-8", "replace")
    if len(data) <= _LONGEST_PART:
        return data.decode()
    return data[: _LONGEST_PART - 17].decode("utf-8", "ignore") + "-" + hashlib.sha256(data).hexdigest()[:16]


def _unlike(name: str, seen: dict[str, int]) -> str:
    count = seen.get(name.casefold(), 0) + 1
    seen[name.casefold()] = count
    return name if count == 1 else _unlike(f"{name}-{count}", seen)
