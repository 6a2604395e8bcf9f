"""The built-in set: drawn faces, 20,000 to train and 2,000 to validate, at the run's own size.

Each face is a function of its number, so a smaller set is the beginning of the larger one.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import numpy.typing as npt
from PIL import Image

from unified_vae.data.cache import PackContents, PackItem, Row
from unified_vae.data.decode import cpu_count
from unified_vae.data.sources.base import Split

NAME = "the built-in faces"
TRAIN_IMAGES, VALIDATION_IMAGES = 20_000, 2_000
_SEED = 0
_CHUNK = 64
_PROCESSES_FROM = 2048  # images; below this a process pool takes longer to start than it saves


def identity() -> str:
    """Changes whenever the drawing does: the hash of a few faces, drawn small."""
    from unified_vae.data.cartoon.faces import draw_faces

    return "builtin:" + hashlib.sha256(draw_faces(_SEED, range(8), 32).tobytes()).hexdigest()


def contents(image_size: int, channels: int, limits: Mapping[Split, int | None]) -> PackContents:
    """The faces of both splits: training counts from number 0, validation from number 20,000."""
    from unified_vae.data.cartoon.faces import ATTRIBUTE_NAMES, face_attributes

    items: dict[Split, list[PackItem]] = {}
    for split, (start, full) in _RANGES.items():
        limit = limits[split]
        numbers = range(start, start + (full if limit is None else min(full, limit)))
        values = face_attributes(_SEED, np.arange(numbers.start, numbers.stop))
        items[split] = [
            PackItem(
                name=f"face {number}",
                content=hashlib.sha256(f"built-in face {_SEED} {number}".encode()).hexdigest(),
                labels={name: int(values[name][row]) for name in ATTRIBUTE_NAMES},
            )
            for row, number in enumerate(numbers)
        ]
    return PackContents(image_size, channels, items, ATTRIBUTE_NAMES)


_RANGES: dict[Split, tuple[int, int]] = {"train": (0, TRAIN_IMAGES), "validation": (TRAIN_IMAGES, VALIDATION_IMAGES)}


def rows(planned: PackContents) -> Iterator[Row]:
    """Draw the planned faces. The drawing is NumPy under the GIL, so many faces are shared by processes."""
    tasks = [
        (split, first, range(start + first, start + min(first + _CHUNK, len(planned.items[split]))))
        for split, (start, _) in _RANGES.items()
        for first in range(0, len(planned.items[split]), _CHUNK)
    ]
    numbers = [(task[2], planned.image_size, planned.channels) for task in tasks]
    workers = min(cpu_count(), 32)
    if planned.count < _PROCESSES_FROM or workers == 1:
        yield from _unpack(tasks, map(_draw, numbers))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_leave_with_parent) as pool:
        yield from _unpack(tasks, pool.map(_draw, numbers))


def _unpack(tasks: list[tuple[Split, int, range]], drawings: Iterator[npt.NDArray[np.uint8]]) -> Iterator[Row]:
    for (split, first, _), drawing in zip(tasks, drawings, strict=True):
        for offset, pixels in enumerate(drawing):
            yield split, first + offset, pixels


def _draw(task: tuple[range, int, int]) -> npt.NDArray[np.uint8]:
    """Faces of the given numbers: uint8 [n, size, size, channels]; gray by ITU-R 601 as for files."""
    from unified_vae.data.cartoon.faces import draw_faces

    numbers, size, channels = task
    drawing = draw_faces(_SEED, np.arange(numbers.start, numbers.stop), size)
    if channels == 3:
        return drawing
    return np.stack([np.asarray(Image.fromarray(face).convert("L")) for face in drawing])[..., None]


def _leave_with_parent() -> None:
    """In a worker: Ctrl-C is the parent's to handle, and a killed parent leaves no orphans."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, "only worker processes call this"

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
