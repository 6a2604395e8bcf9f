"""Interface between image sources and the rest: a source lists its images and reads them undecoded.

Source (where) -> records (what there is) -> scan (hash, header) -> split (train or validation) -> pack (pixels).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from PIL import Image

from unified_vae.core.errors import escape_name

Split = Literal["train", "validation"]
SPLITS: tuple[Split, Split] = ("train", "validation")
RawImage = bytes | np.ndarray | Image.Image
"""An undecoded file, one row of an array ([h, w] or [h, w, c]), or a Pillow image of a library's dataset."""

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
    """One candidate image, before its content has been looked at.

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

    def read(self, positions: Sequence[int]) -> Iterator[Callable[[], RawImage]]:
        """Yield one loader per position (ascending), in that order.

        The loaders are called in worker threads; what a source can only do in sequence, it does in this
        iterator. A loader raises BadImage or OSError where that one image cannot be read.
        """
