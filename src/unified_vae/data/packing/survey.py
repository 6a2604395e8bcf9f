"""First look at a source: the hash and header of each candidate, its side, and the subset that is used.

With `max_images` only as many files are opened as it takes to fill both sides.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from unified_vae.core.errors import DataError
from unified_vae.data.packing.decode import Header, read_header
from unified_vae.data.packing.pool import map_images
from unified_vae.data.packing.split import drawing_order, quotas, side_of
from unified_vae.data.records import BadImage, Listing, Progress, Quarantined, RawImage, Record, Side, Source


@dataclass(frozen=True)
class Candidate:
    """An image whose header could be read.

    Attributes:
        position: its number in the source.
        content: SHA-256 of its bytes, hexadecimal.
    """

    position: int
    name: str
    content: str
    side: Side
    labels: Mapping[str, int]
    header: Header


@dataclass
class Survey:
    """What was found: the candidates that are used, and what had to be left out."""

    listing: Listing
    candidates: list[Candidate] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)
    examined: int = 0

    @property
    def own_split(self) -> bool:
        """Whether the source itself says which images are for validation."""
        return any(record.side == "validation" for record in self.listing.records)

    def room(self, side: Side, quota: int | None) -> float:
        """How many more images of this side are wanted."""
        taken = sum(candidate.side == side for candidate in self.candidates)
        return math.inf if quota is None else quota - taken


def content_hash(raw: RawImage) -> str:
    """SHA-256 of a file's bytes, or of an array's or image's shape and values."""
    if isinstance(raw, bytes):
        return hashlib.sha256(raw).hexdigest()
    values = np.asarray(raw)
    return hashlib.sha256(f"{values.shape}{values.dtype}".encode() + values.tobytes()).hexdigest()


def survey(source: Source, max_images: int | None, validation_fraction: float, progress: Progress) -> Survey:
    """Look at the source's images until both sides are full, or at all of them."""
    result = Survey(source.listing())
    result.quarantined.extend(result.listing.quarantined)
    records = result.listing.records
    limits = quotas(max_images)
    own_split = result.own_split
    names = [record.name for record in records]
    waiting = list(range(len(records))) if max_images is None else drawing_order(names)
    while waiting:
        rooms = {side: max(0, result.room(side, quota)) for side, quota in limits.items()}
        batch, waiting = _next_round(waiting, records, own_split, rooms, validation_fraction)
        if not batch:
            break
        _look_at(source, batch, own_split, rooms, validation_fraction, result, progress)
    return result


def _next_round(
    waiting: Sequence[int],
    records: Sequence[Record],
    own_split: bool,
    rooms: Mapping[Side, float],
    validation_fraction: float,
) -> tuple[list[int], list[int]]:
    """The positions to open next, about as many as fill the room left, and those that stay waiting."""
    unsplit = max(rooms["train"] / (1 - validation_fraction), rooms["validation"] / validation_fraction)
    left: dict[Side | None, float] = {
        "train": rooms["train"],
        "validation": rooms["validation"],
        None: unsplit * 1.1 + 16 if unsplit else 0,
    }
    batch: list[int] = []
    rest: list[int] = []
    for position in waiting:
        side = records[position].side if own_split else None
        (batch if left[side] > 0 else rest).append(position)
        left[side] -= 1
    return batch, rest


def _look_at(
    source: Source,
    batch: Sequence[int],
    own_split: bool,
    rooms: dict[Side, float],
    validation_fraction: float,
    result: Survey,
    progress: Progress,
) -> None:
    """Open the images of one round in the source's order; admit them in the order of `batch`."""
    reading = sorted(batch)
    seen: dict[int, tuple[str, Header] | BadImage] = {}
    for position, look in zip(reading, map_images(_hash_and_header, source.read(reading)), strict=True):
        seen[position] = look
        if len(seen) % 64 == 0 or len(seen) == len(reading):
            progress("looking at images", len(seen), len(reading))
    result.examined += len(reading)
    for position in batch:
        record, look = result.listing.records[position], seen[position]
        if isinstance(look, BadImage):
            result.quarantined.append(Quarantined(record.name, str(look)))
            continue
        content, header = look
        own_side = record.side if own_split else None
        side = own_side or side_of(content, validation_fraction)
        if rooms[side] > 0:
            rooms[side] -= 1
            result.candidates.append(Candidate(position, record.name, content, side, record.labels, header))


def _hash_and_header(raw: RawImage) -> tuple[str, Header]:
    return content_hash(raw), read_header(raw)


def check_bad_fraction(
    name: str, quarantined: Sequence[Quarantined], examined: int, refused: int, listed: int, limit: float
) -> None:
    """Raise DataError where too many files cannot be used, naming the first few.

    Args:
        examined: files that were opened.
        refused: files that were turned away unopened.
        listed: the others, opened or not.
    """
    opened_bad = len(quarantined) - refused
    fraction = max(opened_bad / max(examined, 1), refused / max(listed + refused, 1))
    if fraction > limit:
        first = "; ".join(bad.told() for bad in quarantined[:3])
        raise DataError(
            f"{len(quarantined):,} files of {name} are unusable ({fraction:.0%}; the limit is {limit:.0%}): "
            f"{first}; mend or remove them, or raise data.max_bad_fraction."
        )
