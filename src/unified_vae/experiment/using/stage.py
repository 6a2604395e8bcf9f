"""Long work on files that goes on after a kill: a folder beside the output, what it is for, and how far it came."""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from unified_vae.core.durable import discard, reason, write_text
from unified_vae.core.errors import ConfigError, EnvironmentProblem, UserError
from unified_vae.core.paths import sibling

SECONDS_BETWEEN_SAVES = 5.0
_PLAN, _PROGRESS = "plan.json", "progress.json"


class Stage:
    """A folder of unfinished files beside the output.

    Attributes:
        folder: for the files.
        part: number of the output's file that is being made.
        rows: how many of its rows are done.
        resumed: whether an earlier process began it.
    """

    def __init__(self, output: Path, plan: Mapping[str, Any], notice: Callable[[str], None]) -> None:
        """Take up what an earlier process with the same plan left, or begin."""
        self.folder = sibling(output, ".", ".partial")
        self.part, self.rows, self.resumed = 0, 0, False
        self._saved_at = time.monotonic()
        text = json.dumps(plan, indent=2, sort_keys=True) + "\n"
        if self.folder.exists() and _read(self.folder / _PLAN) != text:
            notice(f"{self.folder} is of other settings, images or weights: it begins anew")
            discard(self.folder)
        if self.folder.exists():
            self.resumed = self._take_up()
        else:
            self.folder.mkdir(parents=True)
            write_text(self.folder / _PLAN, text)

    def _take_up(self) -> bool:
        try:
            entry = json.loads(_read(self.folder / _PROGRESS) or "{}")
            self.part, self.rows = int(entry["part"]), int(entry["rows"])
        except (ValueError, KeyError, TypeError):
            return False
        return (self.part, self.rows) != (0, 0)

    def first(self, name: str, words: Mapping[str, Any]) -> dict[str, Any]:
        """What the process that began the work said under this name; `words` where this one begins it."""
        path = self.folder / f"{name}.json"
        try:
            found = json.loads(_read(path) or "")
        except ValueError:
            found = None
        if not isinstance(found, dict):
            found = dict(words)
            write_text(path, json.dumps(found, indent=2) + "\n")
        return found

    def due(self) -> bool:
        """Whether it is time to save again."""
        return time.monotonic() - self._saved_at >= SECONDS_BETWEEN_SAVES

    def save(self, part: int, rows: int) -> None:
        """All rows before this one are on the disk."""
        self.part, self.rows = part, rows
        write_text(self.folder / _PROGRESS, json.dumps({"part": part, "rows": rows}) + "\n")
        self._saved_at = time.monotonic()

    @contextmanager
    def removed_if_refused(self) -> Iterator[None]:
        """Leave nothing behind where the block refuses to begin; what an earlier process did stays."""
        try:
            yield
        except UserError:
            if not self.resumed:
                self.remove()
            raise

    def remove(self) -> None:
        """The output is complete."""
        discard(self.folder)


@contextmanager
def alone(output: Path) -> Iterator[None]:
    """Hold the output while the block runs, and turn a full or read-only disk into a sentence.

    Raises:
        EnvironmentProblem: another process makes the same output, or the disk does not take it.
    """
    lock = FileLock(sibling(output, ".", ".lock"))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        try:
            yield
        finally:
            lock.release()
            discard(Path(lock.lock_file))
    except Timeout:
        raise EnvironmentProblem(f"{output} is being written by another process: wait for it") from None
    except OSError as problem:
        way = "free some space" if problem.errno == errno.ENOSPC else "mend its permissions or give another --output"
        raise EnvironmentProblem(
            f"{problem.filename or output} cannot be written or read ({reason(problem)}): {way}, and give the same "
            "command again; it goes on where it was"
        ) from problem


def check_room(output: Path, needed: int) -> None:
    """Raise EnvironmentProblem where the disk cannot hold so many bytes more."""
    free = shutil.disk_usage(output.parent).free
    if needed > free:
        raise EnvironmentProblem(
            f"{output} needs {needed / 1e9:.2f} GB, and its disk has {free / 1e9:.2f} GB left: free some space, or "
            "give another --output"
        )


def refuse_existing(paths: Iterator[Path] | list[Path]) -> None:
    """Raise ConfigError where a file is there that this command did not write."""
    for path in paths:
        if path.exists():
            raise ConfigError(f"{path} is there already, and of something else: delete it, or give another --output")


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
