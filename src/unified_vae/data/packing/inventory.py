"""Which images a pack holds, kept beside what was trained on them: so that a later start can say what changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unified_vae.core.durable import write_text
from unified_vae.core.printable import printable
from unified_vae.data.packing.packed import SIDES

_HASH_DIGITS = 16  # 64 bits: two of a million images agree by chance once in 30 million sets


@dataclass(frozen=True)
class Entry:
    """One image: its side of the split, the beginning of its content's SHA-256, its name."""

    side: str
    content: str
    name: str


@dataclass(frozen=True)
class Inventory:
    """The images of a pack.

    Attributes:
        fingerprint: of the whole, as the pack tells it.
    """

    fingerprint: str
    entries: Sequence[Entry]

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Inventory:
        """The images that a pack's manifest lists."""
        entries = [
            Entry(side, content[:_HASH_DIGITS], printable(name))
            for side in SIDES
            for content, name in zip(
                manifest["splits"][side]["content"], manifest["splits"][side]["names"], strict=True
            )
        ]
        return cls(manifest["fingerprint"], entries)

    def write(self, folder: Path) -> None:
        """Keep it in a folder, unless it is there. Its name tells whose it is, so an older one stays beside it."""
        path = _path(folder, self.fingerprint)
        if not path.exists():
            write_text(path, "".join(f"{entry.side}\t{entry.content}\t{entry.name}\n" for entry in self.entries))

    def changes_since(self, folder: Path, fingerprint: str) -> str:
        """What changed since the images with another fingerprint, in words; empty where they were not kept."""
        before = _read(folder, fingerprint)
        return "" if before is None else _compared(before, self.entries)


def contents_kept(folder: Path, side: str) -> frozenset[str]:
    """Contents of all images that any inventory in a folder has on one side; empty without one."""
    kept = (_lines(path) or [] for path in folder.glob("images-*.tsv"))
    return frozenset(entry.content for entries in kept for entry in entries if entry.side == side)


def _path(folder: Path, fingerprint: str) -> Path:
    return folder / f"images-{fingerprint[:_HASH_DIGITS]}.tsv"


def _read(folder: Path, fingerprint: str) -> list[Entry] | None:
    return _lines(_path(folder, fingerprint))


def _lines(path: Path) -> list[Entry] | None:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [Entry(*line.split("\t")) for line in lines]
    except (OSError, ValueError, TypeError):  # it is a help, not needed to go on
        return None


def _compared(before: Sequence[Entry], now: Sequence[Entry]) -> str:
    """E.g. "3 images added, 1 edited"."""
    gone, new = _not_in(before, now), _not_in(now, before)
    edited = len({entry.name for entry in gone} & {entry.name for entry in new})
    sides = {entry.content: entry.side for entry in before}
    moved = sum(sides.get(entry.content, entry.side) != entry.side for entry in now)
    counts = {
        "added": len(new) - edited,
        "removed": len(gone) - edited,
        "edited": edited,
        "moved between training and validation": moved,
    }
    told = [f"{count:,} {what}" for what, count in counts.items() if count]
    return ", ".join(told) or "the same images in another form (size, colour or background)"


def _not_in(these: Iterable[Entry], others: Iterable[Entry]) -> list[Entry]:
    """Those whose content the others lack; of several copies, as many as are too many."""
    left = Counter(entry.content for entry in others)
    missing = []
    for entry in these:
        left[entry.content] -= 1
        if left[entry.content] < 0:
            missing.append(entry)
    return missing
