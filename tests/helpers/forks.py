"""Work in a process of its own that starts at once: for limits and permissions that count for a whole process."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable


def in_a_fork(work: Callable[[], object]) -> object:
    """What `work` returns in a process of its own; an exception comes back as its text."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)

    def run() -> None:
        try:
            theirs.send(work())
        except BaseException as error:
            theirs.send(f"{type(error).__name__}: {error}")

    process = fork.Process(target=run)
    process.start()
    assert ours.poll(120), "no answer"
    answer = ours.recv()
    process.join(10)
    return answer
