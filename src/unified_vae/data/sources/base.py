"""Interface between image sources and the rest: a source lists its images and reads them undecoded.

Source (where) -> records (what there is) -> scan (hash, header) -> split (train or validation) -> pack (pixels).
`Source` is the interface; `PartedSource` is one for data that comes as whole arrays or tables, one for each split.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from PIL import Image

from unified_vae.core.errors import escape_name

Split = Literal["train", "validation"]
SPLITS: tuple[Split, Split] = ("train", "validation")
RawImage = bytes | np.ndarray | Image.Image
"""An undecoded file, one row of an array ([h, w] or [h, w, c]), or a Pillow image of a library's dataset."""

Loader = Callable[[], RawImage]
"""Reads one image. Raises BadImage or OSError where that one image cannot be read."""

Progress = Callable[[str, int, int | None], None]
"""Called with (what is being done, done so far, total or None)."""


class BadImage(Exception):
    """One image cannot be used; the text is the reason shown to the user."""


@dataclass(frozen=True)
class Quarantined:
    """A file that could not be used, and why."""

    name: str
    reason: str

    def format_line(self, separator: str = ": ") -> str:
        """Return name and reason on one line, whatever is in them."""
        return f"{escape_name(self.name)}{separator}{escape_name(self.reason)}"


@dataclass(frozen=True)
class Record:
    """One candidate image, before it is opened.

    Attributes:
        name: its identity as the user knows it: the path inside the source, or "row 12".
        split: "train" or "validation" where the source has its own split, else None.
        labels: label name -> the value's number, e.g. {"class": 3}.
    """

    name: str
    split: Split | None = None
    labels: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Listing:
    """What a source holds.

    Attributes:
        records: the candidates, in the order in which the source reads fastest.
        label_names: label name -> names of its values.
        quarantined: entries rejected without reading them.
        notes: lines the user should read.
    """

    records: Sequence[Record]
    label_names: Mapping[str, list[str]] = field(default_factory=dict)
    quarantined: Sequence[Quarantined] = ()
    notes: Sequence[str] = ()


class Source(Protocol):
    """Where images come from."""

    name: str
    """In the user's words, e.g. "faces128.zip"."""

    def identity(self) -> str:
        """Return text that changes whenever the content may have changed; cheap, since every start asks for it."""

    def listing(self) -> Listing:
        """Return the candidates. Raises DataError where the source cannot be read at all."""

    def read(self, positions: Sequence[int]) -> Iterator[Loader]:
        """Yield one loader per position (ascending), in that order.

        The loaders are called in worker threads; what a source can only do in sequence, it does in this iterator.
        """


class Part(NamedTuple):
    """Images that a source holds together: an array, or one split of a library's dataset.

    Attributes:
        prefix: begins the names of its images, before their number.
        split: as in `Record`.
        items: has a length, and an item for each image.
        labels: class number of each image, a list or an array; None where not all have one.
    """

    prefix: str
    split: Split | None
    items: Any
    labels: Any | None


class PartedSource(ABC):
    """A source that consists of `parts`, which have classes if all of them have labels."""

    name: str

    @property
    @abstractmethod
    def parts(self) -> Sequence[Part]:
        """The parts, in the order in which they are listed and read."""

    @abstractmethod
    def class_names(self) -> list[str]:
        """Return the names of the labels' values."""

    @abstractmethod
    def loader(self, items: Any, index: int) -> Loader:
        """Return what reads one item of a part, after what can only be done in sequence."""

    def listing(self) -> Listing:
        """See `Source.listing`."""
        labeled = all(part.labels is not None for part in self.parts)
        records = [
            Record(f"{prefix} {index}", split, {"class": int(labels[index])} if labeled and labels is not None else {})
            for prefix, split, items, labels in self.parts
            for index in range(len(items))
        ]
        return Listing(records, {"class": self.class_names()} if labeled else {})

    def read(self, positions: Sequence[int]) -> Iterator[Loader]:
        """See `Source.read`."""
        for position in positions:
            for part in self.parts:
                if position < len(part.items):
                    break
                position -= len(part.items)
            yield self.loader(part.items, position)


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
