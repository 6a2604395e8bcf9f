"""Which known names a misspelt word may mean: close in letters, or the beginning or a part of the name.

The limit on the distance is that of rustc: a third of the letters, at least one. Letters that two dotted
paths share say nothing about their last parts, so paths of one owner are compared by their last parts alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

AT_MOST = 3
_SHORTEST_BEGINNING = 3


def alike(word: str, known: Iterable[str]) -> list[str]:
    """The known names that `word` may mean, the likeliest first; at most three, and often none."""
    ranked = [(rank, name) for name in known if (rank := _rank(word, name)) is not None]
    ranked.sort(key=lambda entry: entry[0])  # names of equal rank stay in their own order
    return [name for _, name in ranked[:AT_MOST]]


def _rank(word: str, name: str) -> int | None:
    """Smaller is likelier; None where the two have nothing to do with each other."""
    owner, _, mine = word.rpartition(".")
    their_owner, _, theirs = name.rpartition(".")
    if owner != their_owner:
        mine, theirs = word, name
    mine, theirs = mine.casefold(), theirs.casefold()
    limit = max(len(mine), 3) // 3
    distance = edits(mine, theirs) if abs(len(mine) - len(theirs)) <= limit else limit + 1
    if distance <= limit:
        return distance
    return limit + 1 if _is_part(mine, theirs) else None


def _is_part(word: str, name: str) -> bool:
    """Whether the name begins with the word, or holds all its words: `quick`, `test` of `quick_test`."""
    if len(word) >= _SHORTEST_BEGINNING and name.startswith(word):
        return True
    words = _words(word)
    return bool(words) and words <= _words(name)


def _words(text: str) -> set[str]:
    return {word for word in re.split(r"[^0-9a-z]+", text) if word}


def edits(one: Sequence[str], other: Sequence[str]) -> int:
    """Letters to put in, take out, replace or exchange with their neighbour (optimal string alignment)."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        before, above, row = row, before, [i]
        for j, theirs in enumerate(other, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != theirs))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == theirs:
                cost = min(cost, above[j - 2] + 1)
            row.append(cost)
    return row[-1]
