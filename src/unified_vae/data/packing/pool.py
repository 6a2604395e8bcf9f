"""Work in threads, results in order, with a bounded number of images in flight.

Threads, not processes: Pillow decodes without the GIL, and a process must pickle every image. Measured on
two cores: 256 px JPEGs 855 images/s with two threads, 470 with two processes; 32 px 3,300 against 2,200.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from unified_vae.data.records import BadImage, RawImage

T = TypeVar("T")
_CHUNK = 16  # images per task: a task costs about 50 us, a 32 px image 300 us
_TASKS_PER_WORKER = 4


def cpu_count() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_images(function: Callable[[RawImage], T], loaders: Iterable[Callable[[], RawImage]]) -> Iterator[T | BadImage]:
    """`function` of each loaded image, in order; an image that fails gives its BadImage instead."""
    remaining = iter(loaders)
    workers = cpu_count()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    flying: deque[Future[list[T | BadImage]]] = deque()
    try:
        while True:
            while len(flying) < workers * _TASKS_PER_WORKER and (chunk := list(islice(remaining, _CHUNK))):
                flying.append(pool.submit(_each, function, chunk))
            if not flying:
                return
            yield from flying.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _each(function: Callable[[RawImage], T], loaders: list[Callable[[], RawImage]]) -> list[T | BadImage]:
    return [_one(function, loader) for loader in loaders]


def _one(function: Callable[[RawImage], T], loader: Callable[[], RawImage]) -> T | BadImage:
    try:
        return function(loader())
    except BadImage as bad:
        return bad
    except OSError as error:
        return BadImage(f"cannot be read: {error.strerror or error}")
