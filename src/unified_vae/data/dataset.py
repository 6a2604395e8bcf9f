"""The images of a run: packed on the disk, one raw uint8 file per split, with a manifest that says what is in it.

Layout of a pack's folder (the version is part of its key, so that a change of layout makes new packs):
    train.u8, validation.u8   [n, height, width, channels], no header: mapped into memory as they are
    manifest.json             counts, names, labels, content hashes, a CRC-32 of each image
    manifest.sha256           checks the manifest, in the form of the program sha256sum
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from unified_vae.core.errors import escape_name
from unified_vae.core.files import write_text
from unified_vae.data.sources.base import SPLITS, Quarantined, Split

FORMAT_VERSION = 2  # of the layout, and of how images become pixels
MANIFEST, MANIFEST_SHA256 = "manifest.json", "manifest.sha256"
_SPOT_CHECKS = 32
_HASH_DIGITS = 16  # 64 bits: two of a million images agree by chance once in 30 million sets


class DamagedPack(Exception):
    """A pack is incomplete or not what its manifest says."""


@dataclass(eq=False)
class PackedSplit:
    """The images of one split, read-only, mapped from the disk.

    Attributes:
        path: of the file.
        shape: of `images`.
        names: identity of each image as the user knows it.
        labels: label name -> int64 [n]; None where the source has none.
        label_names: label name -> names of its values.
        images: uint8 [n, height, width, channels].
    """

    path: Path
    shape: tuple[int, int, int, int]
    names: Sequence[str]
    labels: Mapping[str, npt.NDArray[np.int64]] | None = None
    label_names: Mapping[str, list[str]] = field(default_factory=dict)
    images: npt.NDArray[np.uint8] = field(init=False)

    def __post_init__(self) -> None:
        self.images = np.memmap(self.path, np.uint8, "r", shape=self.shape)

    def __len__(self) -> int:
        return self.shape[0]


@dataclass(frozen=True)
class DataSets:
    """The images of a run.

    Attributes:
        channels: 1 or 3, as resolved.
        description: one line for the user.
        fingerprint: SHA-256 over the content hashes of both splits in order, size, channels and background.
        quarantined: files that could not be used.
        notes: lines the user should read.
        inventory: which images they are.
    """

    train: PackedSplit
    validation: PackedSplit
    channels: int
    description: str
    fingerprint: str
    quarantined: Sequence[Quarantined]
    notes: Sequence[str]
    inventory: Inventory


@dataclass(frozen=True)
class Pack:
    """A complete pack on the disk: its manifest and its two splits."""

    folder: Path
    manifest: Mapping[str, Any]

    def split(self, split: Split) -> PackedSplit:
        """Map the images of one split."""
        entry = self.manifest["splits"][split]
        labels = {name: np.array(numbers, dtype=np.int64) for name, numbers in entry["labels"].items()}
        path, label_names = self.folder / f"{split}.u8", self.manifest["label_names"]
        return PackedSplit(path, _shape(self.manifest, split), entry["names"], labels or None, label_names)


def read_pack(folder: Path) -> Pack | None:
    """Return the pack in `folder`; None where there is none.

    Checked at every start: the manifest's hash, the files' sizes, the CRC of images spread over each file.

    Raises:
        DamagedPack: something of it is missing or wrong.
    """
    if not folder.exists():
        return None
    try:
        text = (folder / MANIFEST).read_bytes()
        expected = (folder / MANIFEST_SHA256).read_text(encoding="ascii").split()[0]
    except (OSError, ValueError, IndexError) as error:
        raise DamagedPack(f"the manifest cannot be read ({error})") from None
    if hashlib.sha256(text).hexdigest() != expected:
        raise DamagedPack("the manifest was changed")
    pack = Pack(folder, json.loads(text))
    for split in SPLITS:
        check_images(pack, split, _SPOT_CHECKS)
    return pack


def check_images(pack: Pack, split: Split, at_most: int | None = None) -> None:
    """Compare the CRC of `at_most` images of a split, spread evenly, or of all. Raises DamagedPack."""
    shape = _shape(pack.manifest, split)
    path = pack.folder / f"{split}.u8"
    try:
        size = path.stat().st_size
    except OSError:
        raise DamagedPack(f"{path.name} is missing") from None
    if size != int(np.prod(shape)):
        raise DamagedPack(f"{path.name} has {size:,} bytes instead of {int(np.prod(shape)):,}")
    images = np.memmap(path, np.uint8, "r", shape=shape)
    checksums = pack.manifest["splits"][split]["crc32"]
    count = shape[0] if at_most is None else min(at_most, shape[0])
    for index in np.linspace(0, shape[0] - 1, count).astype(int):
        if zlib.crc32(images[index]) != checksums[index]:
            raise DamagedPack(f"image {index} of {path.name} was changed")


def _shape(manifest: Mapping[str, Any], split: Split) -> tuple[int, int, int, int]:
    size = int(manifest["image_size"])
    return len(manifest["splits"][split]["names"]), size, size, int(manifest["channels"])


class Entry(NamedTuple):
    """One image: its split, the beginning of its content's SHA-256, its name, and a hash of its pixels at that size
    (empty in inventories of before).
    """

    split: str
    content: str
    name: str
    pixels: str = ""


@dataclass(frozen=True)
class Inventory:
    """Which images a pack holds, kept beside what was trained on them, so that a later start can say what changed.

    Attributes:
        fingerprint: of the whole, as the pack has it.
    """

    fingerprint: str
    entries: Sequence[Entry]

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> Inventory:
        """Return the images that a pack's manifest lists."""
        entries = [
            Entry(split, content[:_HASH_DIGITS], escape_name(name), pixels)
            for split in SPLITS
            for content, name, pixels in zip(
                *(manifest["splits"][split][name] for name in ("content", "names", "pixels")), strict=True
            )
        ]
        return cls(manifest["fingerprint"], entries)

    def write(self, folder: Path) -> None:
        """Write it into a folder, unless it is there. Its name has the fingerprint, so older ones stay beside it."""
        path = _inventory_path(folder, self.fingerprint)
        if not path.exists():
            write_text(path, "".join("\t".join(entry) + "\n" for entry in self.entries))

    def changes_since(self, folder: Path, fingerprint: str) -> str:
        """Describe what changed since the images with another fingerprint, e.g. "3 images added, 1 edited".

        Empty where their inventory is not in the folder.
        """
        before = _read_entries(_inventory_path(folder, fingerprint))
        if before is None:
            return ""
        gone, new = _missing_from(self.entries, before), _missing_from(before, self.entries)
        edited = len({entry.name for entry in gone} & {entry.name for entry in new})
        splits = {entry.content: entry.split for entry in before}
        moved = sum(splits.get(entry.content, entry.split) != entry.split for entry in self.entries)
        counts = {
            "added": len(new) - edited,
            "removed": len(gone) - edited,
            "edited": edited,
            "moved between training and validation": moved,
        }
        changes = [f"{count:,} {what}" for what, count in counts.items() if count]
        return ", ".join(changes) or "the same images in another form (size, color or background)"


def recorded_contents(folder: Path, split: Split) -> frozenset[str]:
    """Return the hashes of contents and pixels of all images that any inventory in a folder has in one split."""
    inventories = (_read_entries(path) or [] for path in folder.glob("images-*.tsv"))
    listed = [entry for entries in inventories for entry in entries if entry.split == split]
    return frozenset(text for entry in listed for text in (entry.content, entry.pixels) if text)


def _inventory_path(folder: Path, fingerprint: str) -> Path:
    return folder / f"images-{fingerprint[:_HASH_DIGITS]}.tsv"


def _read_entries(path: Path) -> list[Entry] | None:
    try:
        return [Entry(*line.split("\t")) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, TypeError):  # it is a help, not needed to go on
        return None


def _missing_from(others: Iterable[Entry], entries: Iterable[Entry]) -> list[Entry]:
    """The entries whose content the others lack; of several copies, as many as are too many."""
    left = Counter(entry.content for entry in others)
    missing = []
    for entry in entries:
        left[entry.content] -= 1
        if left[entry.content] < 0:
            missing.append(entry)
    return missing
