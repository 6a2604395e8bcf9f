"""Loader processes that are watched: one that dies, hangs or fails is replaced, and nothing is lost by it.

torch's DataLoader does not survive what is survived here: its handler of SIGCHLD raises in the middle of a step
when a process dies, and fetching a batch from a stopped process waits for ever, whatever its timeout. Here only
numbers go through a pipe of each process's own, and pixels lie in memory that the main process owns; so every
wait has an end, and a process can be killed at any moment.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from multiprocessing import connection as pipes
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.heap import BufferWrapper
from types import ModuleType

import numpy as np
import numpy.typing as npt

from unified_vae.data.loader_process import DONE, READY, serve
from unified_vae.data.order import Order
from unified_vae.data.packing.packed import PackedSplit

SILENCE_SECONDS = 45.0
"""A process that is silent for so long while a batch is waited for hangs."""
START_SECONDS = 45.0
"""The same for its first word, which comes when it has started."""
RESTARTS = 3
"""How often failed processes are replaced before loading is given up."""
FORGIVEN_AFTER = 1000  # batches: failures so rare have no common cause
_AHEAD = 2  # batches that each process may be ahead
_END_SECONDS = 5.0

Told = Callable[[str], None]
Pixels = npt.NDArray[np.uint8]


class LoadingFailed(RuntimeError):
    """Loader processes failed again and again; the text says how the last one did."""


class _Failure(Exception):
    """How a loader process failed, in words."""


def load(split: PackedSplit, order: Order, steps: range, workers: int, told: Told) -> Generator[Pixels, None, None]:
    """The pixels of each step, [local, height, width, channels]; each array is the caller's own.

    Args:
        workers: processes, at least 1. Their number changes nothing in what is loaded.
        told: receives a line when failed processes are replaced.

    Raises:
        LoadingFailed: they failed RESTARTS + 1 times within FORGIVEN_AFTER batches.
    """
    failures, since = 0, 0
    while steps:
        try:
            with _processes(split, order, min(workers, len(steps))) as team:
                for pixels in team.fetch(steps):
                    yield pixels
                    steps = steps[1:]
                    since += 1
        except _Failure as failure:
            failures = 1 if since >= FORGIVEN_AFTER else failures + 1
            since = 0
            if failures > RESTARTS:
                raise LoadingFailed(f"loader processes failed {failures} times; the last one {failure}") from None
            told(
                f"a loader process {failure}. All are replaced, and loading goes on with step {steps[0] + 1:,} "
                f"({failures} of at most {RESTARTS} times); the result is the same"
            )


@contextmanager
def _processes(split: PackedSplit, order: Order, count: int) -> Iterator[_Team]:
    """A team of loader processes, of which nothing is left afterwards."""
    team = _Team(split, order)
    try:
        for _ in range(count):
            team.members.append(_Member(team.context, split, order))
        yield team
    finally:
        for member in team.members:
            member.end()


class _Team:
    """Several processes, which take the steps in turn."""

    def __init__(self, split: PackedSplit, order: Order) -> None:
        self.context = multiprocessing.get_context("spawn")  # a fork would hold the run's lock, and torch's threads
        self.members: list[_Member] = []

    def fetch(self, steps: range) -> Iterator[Pixels]:
        """The pixels of the steps, in their order; raises _Failure."""
        asked: deque[tuple[_Member, int]] = deque()
        for member in self.members:
            member.expect(READY, START_SECONDS)
        for number, step in enumerate(steps):
            if len(asked) == _AHEAD * len(self.members):
                yield self._answered(*asked.popleft())
            member, slot = self.members[number % len(self.members)], number // len(self.members) % _AHEAD
            member.ask(step, slot)
            asked.append((member, slot))
        while asked:
            yield self._answered(*asked.popleft())

    def _answered(self, member: _Member, slot: int) -> Pixels:
        member.expect(DONE, SILENCE_SECONDS)
        return member.slots[slot].copy()


class _Member:
    """One loader process, its pipe and its memory."""

    def __init__(self, context: SpawnContext, split: PackedSplit, order: Order) -> None:
        shape = (_AHEAD, order.local_size, *split.shape[1:])
        try:
            memory = BufferWrapper(int(np.prod(shape)))  # not RawArray, which writes zeros: fatal on a full /dev/shm
            self.pipe, theirs = context.Pipe()
            arguments = (theirs, memory, split.path, split.shape, order)
            self.process: SpawnProcess = context.Process(target=serve, args=arguments, daemon=True, name="loader")
            with _signals_of_the_main_process_alone(), _main_module_hidden():
                self.process.start()
        except OSError as error:
            raise _Failure(f"could not be started ({error.strerror or error})") from None
        theirs.close()
        self._memory = memory  # given to others where nobody holds it any more
        self.slots: Pixels = np.frombuffer(memory.create_memoryview(), np.uint8).reshape(shape)

    def ask(self, step: int, slot: int) -> None:
        try:
            self.pipe.send((step, slot))
        except OSError:
            raise _Failure(self._how_it_ended()) from None

    def expect(self, word: bytes, seconds: float) -> None:
        """Wait for the process's word; raises _Failure where it fails, dies or stays silent."""
        if not pipes.wait([self.pipe, self.process.sentinel], seconds):
            raise _Failure(f"(number {self.process.pid}) was silent for {seconds:g} s")
        try:
            said = self.pipe.recv_bytes() if self.pipe.poll() else b""
        except (EOFError, OSError):
            said = b""
        if said != word:
            raise _Failure(f"failed ({said.decode('utf-8', 'replace')})" if said else self._how_it_ended())

    def end(self) -> None:
        """Killed, not asked: it holds nothing that could be lost, and may hang."""
        self.process.kill()
        self.process.join(_END_SECONDS)
        self.pipe.close()

    def _how_it_ended(self) -> str:
        self.process.join(_END_SECONDS)
        code = self.process.exitcode
        if code is None or code >= 0:
            return f"(number {self.process.pid}) ended by itself with code {code}"
        return f"(number {self.process.pid}) was killed by {signal.Signals(-code).name}"


@contextmanager
def _signals_of_the_main_process_alone() -> Iterator[None]:
    """Processes started inside never see the signals that a terminal or a scheduler sends to the whole group."""
    if not hasattr(signal, "pthread_sigmask") or threading.current_thread() is not threading.main_thread():
        yield
        return
    resource_tracker.ensure_running()  # multiprocessing's own helper; starting it would undo the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Processes started inside do not import the program that was started: it may load torch, or train at once."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
