"""Packed images: one raw uint8 file per side of the split, and a manifest that says what is in it.

Layout of a pack's folder (the version is part of its key, so that a change of layout makes new packs):
    train.u8, validation.u8   [n, height, width, channels], no header: mapped into memory as they are
    manifest.json             counts, names, labels, content hashes, a CRC-32 of each image
    manifest.sha256           checks the manifest, in the form of the program sha256sum
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unified_vae.data.records import Side

FORMAT_VERSION = 1
MANIFEST, MANIFEST_SHA256 = "manifest.json", "manifest.sha256"
SIDES: tuple[Side, Side] = ("train", "validation")
_SPOT_CHECKS = 32


class DamagedPack(Exception):
    """A pack is incomplete or not what its manifest says."""


@dataclass(frozen=True)
class Labels:
    """Numbers per image for each label, and the names of the numbers."""

    values: Mapping[str, npt.NDArray[np.int64]]
    names: Mapping[str, list[str]]


class PackedSplit:
    """The images of one side, read-only, mapped from the disk.

    It pickles as its path: a loader process maps the file anew instead of receiving the pixels.

    Attributes:
        images: uint8 [n, height, width, channels].
        names: identity of each image as the user knows it.
        labels: label name -> int64 [n]; None where the source has none.
        label_names: label name -> names of its values.
    """

    def __init__(
        self, path: Path, shape: tuple[int, int, int, int], names: Sequence[str], labels: Labels | None = None
    ) -> None:
        self.path = path
        self.shape = shape
        self.names = names
        self.labels: dict[str, npt.NDArray[np.int64]] | None = None if labels is None else dict(labels.values)
        self.label_names: dict[str, list[str]] = {} if labels is None else dict(labels.names)
        self.images: npt.NDArray[np.uint8] = np.memmap(path, np.uint8, "r", shape=shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "images"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.images = np.memmap(self.path, np.uint8, "r", shape=self.shape)


@dataclass(frozen=True)
class Pack:
    """A complete pack on the disk: its manifest and its two sides."""

    folder: Path
    manifest: Mapping[str, Any]

    def split(self, side: Side) -> PackedSplit:
        entry = self.manifest["splits"][side]
        labels = None
        if entry["labels"]:
            values = {name: np.array(numbers, dtype=np.int64) for name, numbers in entry["labels"].items()}
            labels = Labels(values, self.manifest["label_names"])
        return PackedSplit(self.folder / f"{side}.u8", _shape(self.manifest, side), entry["names"], labels)


def read_pack(folder: Path) -> Pack | None:
    """The pack in `folder`; None where there is none.

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
    for side in SIDES:
        check_images(pack, side, _SPOT_CHECKS)
    return pack


def check_images(pack: Pack, side: Side, at_most: int | None = None) -> None:
    """Compare the CRC of `at_most` images of a side, spread evenly, or of all. Raises DamagedPack."""
    shape = _shape(pack.manifest, side)
    path = pack.folder / f"{side}.u8"
    try:
        size = path.stat().st_size
    except OSError:
        raise DamagedPack(f"{path.name} is missing") from None
    if size != int(np.prod(shape)):
        raise DamagedPack(f"{path.name} has {size:,} bytes instead of {int(np.prod(shape)):,}")
    images = np.memmap(path, np.uint8, "r", shape=shape)
    checksums = pack.manifest["splits"][side]["crc32"]
    count = shape[0] if at_most is None else min(at_most, shape[0])
    for index in np.linspace(0, shape[0] - 1, count).astype(int):
        if zlib.crc32(images[index]) != checksums[index]:
            raise DamagedPack(f"image {index} of {path.name} was changed")


def manifest_files(manifest: Mapping[str, Any]) -> dict[str, bytes]:
    """The bytes of the two manifest files."""
    text = json.dumps(manifest, ensure_ascii=True, separators=(",", ":")).encode()
    line = f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n"
    return {MANIFEST: text, MANIFEST_SHA256: line.encode("ascii")}


def _shape(manifest: Mapping[str, Any], side: Side) -> tuple[int, int, int, int]:
    size = int(manifest["image_size"])
    return len(manifest["splits"][side]["names"]), size, size, int(manifest["channels"])
