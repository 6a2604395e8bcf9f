"""Which images train and which validate: pure functions of what the images contain.

The side follows from the SHA-256 of a file's bytes. So it does not change when files are added, removed or
renamed, and copies of one picture are never on both sides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from unified_vae.data.records import Side

SMALLEST_VALIDATION = 64
"""`max_images` keeps at least this many validation images: fewer would make a noisy figure."""


def side_of(content_sha256: str, validation_fraction: float) -> Side:
    """Validation where the hash, read as a number in [0, 1), is below the fraction."""
    position = int(content_sha256[:16], 16) / 2**64
    return "validation" if position < validation_fraction else "train"


def quotas(max_images: int | None) -> dict[Side, int | None]:
    """The most images of each side; None is no limit."""
    if max_images is None:
        return {"train": None, "validation": None}
    return {"train": max_images, "validation": max(SMALLEST_VALIDATION, max_images // 10)}


def drawing_order(names: Sequence[str]) -> list[int]:
    """The order in which a subset is filled: by the hash of the name, so that it is fair and stays."""
    hashes = [hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest() for name in names]
    return sorted(range(len(names)), key=lambda index: (hashes[index], names[index]))


def give_to_empty_side(sides: Sequence[Side], content_sha256: Sequence[str]) -> tuple[list[Side], str | None]:
    """Make sure that both sides have an image, for sets so small that the hash left one empty.

    The content with the smallest hash moves, with all its copies; where all images are copies of one
    another, the first one alone moves.

    Returns:
        The sides, and a line for the user where something moved.
    """
    present = set(sides)
    if len(present) == 2 or len(sides) < 2:
        return list(sides), None
    empty: Side = "validation" if "train" in present else "train"
    smallest = min(content_sha256)
    moving = [index for index, content in enumerate(content_sha256) if content == smallest]
    if len(moving) == len(sides):
        moving = moving[:1]
    result = list(sides)
    for index in moving:
        result[index] = empty
    return result, (
        f"The set is so small that the split left no {empty} image; {len(moving)} of {len(sides)} was moved there."
    )
