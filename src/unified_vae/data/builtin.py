"""The built-in set: drawn faces, 20,000 to train and 2,000 to validate, at the run's own size.

Each face is a function of its number, so a smaller set is the beginning of the larger one.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import numpy.typing as npt
from PIL import Image

from unified_vae.data.packing.pack import Item, Plan, Row
from unified_vae.data.packing.pool import cpu_count
from unified_vae.data.packing.split import quotas
from unified_vae.data.records import Side

NAME = "the built-in faces"
TRAIN_IMAGES, VALIDATION_IMAGES = 20_000, 2_000
_SEED = 0
_CHUNK = 64
_PROCESSES_FROM = 2048  # images; below this a process pool takes longer to start than it saves


def identity() -> str:
    """Changes whenever the drawing does: the hash of a few faces, drawn small."""
    from unified_vae.data.cartoon.faces import draw_faces

    return "builtin:" + hashlib.sha256(draw_faces(_SEED, range(8), 32).tobytes()).hexdigest()


def plan(image_size: int, channels: int, max_images: int | None) -> Plan:
    """The faces of both sides: training counts from number 0, validation from number 20,000."""
    from unified_vae.data.cartoon.faces import ATTRIBUTE_NAMES, face_attributes

    limits = quotas(max_images)
    items: dict[Side, list[Item]] = {}
    for side, (start, full) in _RANGES.items():
        quota = limits[side]
        numbers = range(start, start + (full if quota is None else min(full, quota)))
        values = face_attributes(_SEED, np.arange(numbers.start, numbers.stop))
        items[side] = [
            Item(
                name=f"face {number}",
                content=hashlib.sha256(f"built-in face {_SEED} {number}".encode()).hexdigest(),
                labels={name: int(values[name][row]) for name in ATTRIBUTE_NAMES},
            )
            for row, number in enumerate(numbers)
        ]
    return Plan(image_size, channels, items, ATTRIBUTE_NAMES)


_RANGES: dict[Side, tuple[int, int]] = {
    "train": (0, TRAIN_IMAGES),
    "validation": (TRAIN_IMAGES, VALIDATION_IMAGES),
}


def rows(of: Plan) -> Iterator[Row]:
    """Draw the planned faces. The drawing is NumPy under the GIL, so many faces are shared by processes."""
    tasks = [
        (side, first, range(start + first, start + min(first + _CHUNK, len(of.items[side]))))
        for side, (start, _) in _RANGES.items()
        for first in range(0, len(of.items[side]), _CHUNK)
    ]
    numbers = [(task[2], of.image_size, of.channels) for task in tasks]
    workers = min(cpu_count(), 32)
    if of.count < _PROCESSES_FROM or workers == 1:
        yield from _unpack(tasks, map(_draw, numbers))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_leave_with_parent) as pool:
        yield from _unpack(tasks, pool.map(_draw, numbers))


def _unpack(tasks: list[tuple[Side, int, range]], drawings: Iterator[npt.NDArray[np.uint8]]) -> Iterator[Row]:
    for (side, first, _), drawing in zip(tasks, drawings, strict=True):
        for offset, pixels in enumerate(drawing):
            yield side, first + offset, pixels


def _draw(task: tuple[range, int, int]) -> npt.NDArray[np.uint8]:
    """Faces of the given numbers: uint8 [n, size, size, channels]; grey by ITU-R 601 as for files."""
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
