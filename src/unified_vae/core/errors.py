"""Errors a user can fix: one sentence - what, where, what to do - and an exit code; and the parts of such sentences.

The cli prints the sentence and exits with `exit_code`; anything else that escapes is a bug of ours.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Sequence
from os import PathLike

MAX_NAME_LENGTH = 400  # letters of a name in a message
MOST_LISTED = 24  # names that an error lists where none is close


class UserError(ValueError):
    """Something the user can put right. Its text is the whole message.

    Attributes:
        details: lines of a table that is shown below the text.
    """

    exit_code = 2

    def __init__(self, message: str, details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.details = tuple(details)


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
    """Training produced NaN/Inf."""

    exit_code = 4


def close_names(word: str, known: Iterable[str]) -> list[str]:
    """Return at most three known names that a misspelled word may mean, the likeliest first.

    Those that begin with the word count too: `quick` for `quick_test`.
    """
    names = {name.casefold(): name for name in known}
    word = word.casefold()
    close = difflib.get_close_matches(word, names, n=3)
    close += [name for name in names if len(word) >= 3 and name.startswith(word) and name not in close]
    return [names[name] for name in close[:3]]


def nearest(word: str, known: Iterable[str], prefix: str = "") -> str:
    """Return the end of an error sentence: the known names that `word` may have meant, or the first of all names.

    Args:
        prefix: put before each name in the answer.
    """
    names = list(dict.fromkeys(known))
    if close := close_names(word, names):
        return "Did you mean " + " or ".join(repr(prefix + name) for name in close) + "?"
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return "Known: " + ", ".join(prefix + name for name in names[:MOST_LISTED]) + more + "."


def reason(problem: BaseException) -> str:
    """Return why a file could not be written or read, in the system's words and without its numbers."""
    text = isinstance(problem, OSError) and problem.strerror
    return text or (str(problem) or type(problem).__name__).splitlines()[0]


def truncate(text: str, length: int = MAX_NAME_LENGTH) -> str:
    """Return a text for a message; of a very long one, which a file may have put there, its beginning."""
    return text if len(text) <= length else f"{text[:length]}... ({len(text):,} letters)"


def escape_name(name: str) -> str:
    """Escape what is no text in a name, or would steer the terminal, so that it stays on one line."""
    text = name.encode("utf-8", "backslashreplace").decode("utf-8")  # bytes that were no text, as the system gave them
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def shell_quote(*words: str | PathLike[str]) -> str:
    """Return the words as a POSIX shell takes them, e.g. `--data 'my photos'`."""
    return shlex.join(map(str, words))


def uv_run(*words: str | PathLike[str]) -> str:
    """Return a command of this program, e.g. `uv run train.py --run-dir 'runs/my run'`."""
    return shell_quote("uv", "run", *words)
