"""What is known of images by name: class folders, the built-in set's attributes, or a table such as CelebA's."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from unified_vae.core.errors import ConfigError, DataError, nearest
from unified_vae.core.printable import printable

UNKNOWN = -1
TABLES = (".csv", ".tsv", ".txt")
FEWEST = 10
"""Images with and without an attribute that a direction needs."""
_NO, _YES = {"-1", "0", "false", "no"}, {"1", "true", "yes"}


@dataclass(frozen=True)
class Attribute:
    """One thing that images differ in, e.g. glasses.

    Attributes:
        values: names of what it may be, e.g. none, round, square.
        numbers: value of each image, UNKNOWN where it is not known; int64 [n].
    """

    name: str
    values: Sequence[str]
    numbers: npt.NDArray[np.int64]

    def counts(self) -> npt.NDArray[np.int64]:
        """Images of each value."""
        return np.bincount(self.numbers[self.numbers >= 0], minlength=len(self.values))

    @property
    def is_dead(self) -> bool:
        """Whether fewer than two values have enough images to tell them apart."""
        return int((self.counts() >= FEWEST).sum()) < 2

    def on(self) -> int:
        """The value that stands for having the attribute, of those that are there or not."""
        return next(number for number, value in enumerate(self.values) if value.lower() in _YES)

    @property
    def is_yes_or_no(self) -> bool:
        """Whether it is either there or not."""
        words = [value.lower() for value in self.values]
        return len(words) == 2 and any(word in _YES for word in words) and any(word in _NO for word in words)


def of_labels(labels: Mapping[str, npt.NDArray[np.int64]], names: Mapping[str, list[str]]) -> list[Attribute]:
    """The labels that a data source has."""
    return [Attribute(name, names[name], numbers) for name, numbers in labels.items()]


def is_table(labels: str) -> bool:
    """Whether the text names a table rather than a data source."""
    return labels.lower().endswith(TABLES)


def of_table(path: Path, ids: Sequence[str]) -> list[Attribute]:
    """The attributes of a table, for the images with these names.

    The first column names the images; the others hold -1 or 0 and 1. The first line names the columns. CelebA's own
    file has the number of images above it, and spaces between; both are understood. Where the table's names lack the
    folders of the images', the file names alone are compared.

    Raises:
        DataError: it is no such table, or names none of the images.
    """
    heads, rows = _table(path)
    places = _places(ids, list(rows))
    if not places:
        first = printable(next(iter(rows), "nothing"))
        raise DataError(
            f"{path} names none of the {len(ids):,} images (it names e.g. {first}, and an image is e.g. "
            f"{printable(ids[0])}): its first column holds the names of the files"
        )
    found = []
    for column, head in enumerate(heads):
        numbers = np.full(len(ids), UNKNOWN, np.int64)
        for name, image in places.items():
            numbers[image] = _number(path, head, rows[name][column])
        found.append(Attribute(head, ["no", "yes"], numbers))
    return found


def _table(path: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Names of the columns after the first, and the rows by what their first column says."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as problem:
        raise DataError(f"{path} cannot be read: {problem.strerror}") from None
    except ValueError:
        raise DataError(f"{path} is no table of text: --labels takes a .csv, .tsv or .txt, or a data source") from None
    if lines and lines[0].strip().isdigit():  # CelebA's own file
        lines = lines[1:]
    cut = _cut(lines)
    if len(cut) < 2 or len(cut[1]) < 2:
        raise DataError(f"{path} is no table: a line with the attributes' names, then a line an image")
    width = len(cut[1])
    heads = cut[0][-(width - 1) :]
    if len(cut[0]) not in (width - 1, width):
        raise DataError(f"{path}: its first line has {len(cut[0])} names and the second {width} entries")
    for number, row in enumerate(cut[1:], start=2):
        if len(row) != width:
            raise DataError(f"{path}: row {number} has {len(row)} entries, and the others have {width}")
    return heads, {row[0]: row[1:] for row in cut[1:]}


def _cut(lines: Sequence[str]) -> list[list[str]]:
    lines = [line for line in lines if line.strip()]
    separator = next((mark for mark in (",", "\t", ";") if lines and mark in lines[0]), None)
    if separator is None:
        return [line.split() for line in lines]
    return [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=separator)]


def _places(ids: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    """Row of the table -> number of the image, for those that are images."""
    whole = {name: number for number, name in enumerate(ids)}
    found = {name: whole[name] for name in names if name in whole}
    if found:
        return found
    by_file: dict[str, int] = {}
    twice = set()
    for number, name in enumerate(ids):
        file = PurePosixPath(name).name
        twice |= {file} if file in by_file else set()
        by_file[file] = number
    return {name: by_file[name] for name in names if name in by_file and name not in twice}


def _number(path: Path, head: str, cell: str) -> int:
    word = cell.lower().removesuffix(".0")
    if word in _YES:
        return 1
    if word in _NO:
        return 0
    if not word:
        return UNKNOWN
    raise DataError(f"{path}: the column {head!r} holds {cell!r}; attributes are -1 or 0, and 1")


def chosen(attributes: Sequence[Attribute], word: str) -> tuple[Attribute, int]:
    """The attribute and the value that a user's word names: `freckles`, `glasses=round`, or a value's own name.

    Raises:
        ConfigError: there is none, or all images agree in it.
    """
    known = {choice: (attribute, value) for attribute in attributes for choice, value in choices(attribute).items()}
    named = known.get(word) or _by_value(known, word)
    if named is None:
        raise ConfigError(f"there is no attribute {word!r}: {nearest(word, known)}")
    attribute, value = named
    counts = attribute.counts()
    others = int(counts.sum() - counts[value])
    if counts[value] < FEWEST or others < FEWEST:
        raise ConfigError(
            f"{word} cannot be learnt: {int(counts[value]):,} of the labelled images have it, {others:,} do not, and "
            f"{FEWEST} of each are needed"
        )
    return attribute, value


def choices(attribute: Attribute) -> dict[str, int]:
    """What may be asked of an attribute: word -> value."""
    if attribute.is_yes_or_no:
        return {attribute.name: attribute.on()}
    return {f"{attribute.name}={value}": number for number, value in enumerate(attribute.values)}


def _by_value(known: Mapping[str, tuple[Attribute, int]], word: str) -> tuple[Attribute, int] | None:
    """By a value's own name, where one alone has it: `cats` of the class folders."""
    found = [entry for entry in known.values() if entry[0].values[entry[1]] == word and not entry[0].is_yes_or_no]
    return found[0] if len(found) == 1 else None
