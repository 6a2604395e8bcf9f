"""What a loader process does: copy the images of a step into shared memory, whenever it is asked to.

It imports no torch, so it starts at once, and keeps nothing: it may be killed at any moment.
"""

from __future__ import annotations

from multiprocessing.connection import Connection
from multiprocessing.heap import BufferWrapper
from pathlib import Path

import numpy as np

from unified_vae.data.order import Order

MOST_TOLD = 400  # letters of an error
DONE = b"done"
READY = b"ready"


def serve(
    connection: Connection, memory: BufferWrapper, path: Path, shape: tuple[int, int, int, int], order: Order
) -> None:
    """Answer requests until the other end is closed, as the system does when the main process dies.

    Args:
        connection: gives (step, slot) and is told DONE, or the words of an error.
        memory: shared bytes, a multiple of a rank's batch: the slots.
        path: the packed images, uint8 of `shape` [n, height, width, channels].
    """
    try:
        images = np.memmap(path, np.uint8, "r", shape=shape)
        slots = np.frombuffer(memory.create_memoryview(), np.uint8).reshape(-1, order.local_size, *shape[1:])
        connection.send_bytes(READY)
        while True:
            step, slot = connection.recv()
            images.take(order.indices(step), axis=0, out=slots[slot], mode="clip")
            connection.send_bytes(DONE)
    except EOFError:
        return  # no more requests
    except Exception as error:
        _tell(connection, f"{type(error).__name__}: {error}"[:MOST_TOLD])


def _tell(connection: Connection, words: str) -> None:
    try:
        connection.send_bytes(words.encode("utf-8", "backslashreplace"))
    except OSError:
        return  # nobody listens any more
