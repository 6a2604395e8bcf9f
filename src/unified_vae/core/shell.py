"""Commands for the user to copy: quoted, so that a shell reads back the very words."""

from __future__ import annotations

import shlex
from os import PathLike


def quoted(*words: str | PathLike[str]) -> str:
    """The words as a POSIX shell takes them, e.g. `--data 'my photos'`."""
    return shlex.join(map(str, words))


def uv_run(*words: str | PathLike[str]) -> str:
    """A command of this program, e.g. `uv run train.py --run-dir 'runs/my run'`."""
    return quoted("uv", "run", *words)
