"""One thing at a time done in a thread beside the training, and its outcome handed back to the main thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """Does a job beside the caller.

    The thread is no daemon: a process that ends in any ordinary way finishes the job first.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._result: T | None = None
        self._error: BaseException | None = None

    def begin(self, job: Callable[[], T]) -> None:
        """Start a job. The outcome of the one before has to be collected first."""
        assert self._thread is None, "never two at once"
        self._thread = threading.Thread(target=self._work, args=(job,), name="saving")
        self._thread.start()

    def ready(self) -> bool:
        """Whether a job has ended and its outcome waits to be collected."""
        return self._thread is not None and not self._thread.is_alive()

    def collect(self) -> T | None:
        """Wait for the job, if there is one; its result, or None where there was none.

        Raises:
            BaseException: what the job raised.
        """
        if self._thread is None:
            return None
        self._thread.join()  # interrupted by signals, whose handlers run here
        self._thread = None
        result, error, self._result, self._error = self._result, self._error, None, None
        if error is not None:
            raise error
        return result

    def _work(self, job: Callable[[], T]) -> None:
        try:
            self._result = job()
        except BaseException as error:  # raised again where the outcome is collected
            self._error = error
