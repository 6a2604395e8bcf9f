"""Mistakes a user can mend: one sentence - what, where, what to do - and an exit code.

The cli prints the sentence and exits with `exit_code`; anything else that escapes is a bug of ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user can put right. Its text is the whole message."""

    exit_code = 2


class ConfigError(UserError):
    """A wrong preset, key, value or combination of options."""


class DataError(UserError):
    """The images cannot be used as asked."""


class EnvironmentProblem(UserError):
    """Disk, permission, lock, device or optional package: outside the run's own settings."""

    exit_code = 3


class CheckpointError(EnvironmentProblem):
    """A checkpoint is damaged, missing, untrusted or of another model."""


class Diverged(UserError):
    """Training produced numbers that are not finite."""

    exit_code = 4


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error sentence: the known names that `word` may have meant.

    Close spellings come first; where none is close, all names are listed.
    """
    names = list(known)
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    if close:
        return "Did you mean " + " or ".join(repr(name) for name in close) + "?"
    return "Known: " + ", ".join(names) + "."
