"""Build a pack: rows of pixels in, a complete folder out, or nothing.

Everything is written into a stage beside the cache's packs, flushed to the disk, and renamed in one step.
"""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from unified_vae.data.packing.cache_dir import check_space, disk_problems, new_stage
from unified_vae.data.packing.packed import SIDES, DamagedPack, Pack, manifest_files, read_pack
from unified_vae.data.records import BadImage, Progress, Quarantined, Side


@dataclass(frozen=True)
class Item:
    """One image of a pack.

    Attributes:
        content: SHA-256 of what it is made from, hexadecimal.
    """

    name: str
    content: str
    labels: Mapping[str, int]


@dataclass(frozen=True)
class Plan:
    """What a pack will hold: the items of each side in their final order."""

    image_size: int
    channels: int
    items: Mapping[Side, Sequence[Item]]
    label_names: Mapping[str, list[str]]

    @property
    def row_bytes(self) -> int:
        return self.image_size**2 * self.channels

    @property
    def count(self) -> int:
        return sum(len(items) for items in self.items.values())


Row = tuple[Side, int, npt.NDArray[np.uint8] | BadImage]
"""(side, index in the plan, pixels [size, size, channels] or why there are none); rows come in any order."""


class Staged:
    """A pack in the making. Use as a context manager: whatever is not committed is deleted."""

    def __init__(self, root: Path, plan: Plan) -> None:
        self.root, self.plan = root, plan
        self.stage = new_stage(root)
        self._checksums: dict[Side, dict[int, int]] = {side: {} for side in SIDES}
        self.quarantined: list[Quarantined] = []

    def __enter__(self) -> Staged:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.stage, ignore_errors=True)

    def counts(self) -> dict[Side, int]:
        """Images written so far, per side."""
        return {side: len(self._checksums[side]) for side in SIDES}

    def write(self, rows: Iterator[Row], progress: Progress) -> None:
        """Put each row at its place; the places of bad images are closed up at the end."""
        with disk_problems(self.root):
            check_space(self.root, self.plan.count * self.plan.row_bytes)
        with ExitStack() as stack:
            with disk_problems(self.root):
                files = {side: stack.enter_context((self.stage / f"{side}.u8").open("w+b")) for side in SIDES}
            for done, (side, index, pixels) in enumerate(rows, start=1):
                if isinstance(pixels, BadImage):
                    self.quarantined.append(Quarantined(self.plan.items[side][index].name, str(pixels)))
                else:
                    with disk_problems(self.root):
                        self._put(files[side], side, index, pixels)
                if done % 64 == 0 or done == self.plan.count:
                    progress("packing images", done, self.plan.count)
            with disk_problems(self.root):
                for side in SIDES:
                    _close_gaps(files[side], sorted(self._checksums[side]), self.plan.row_bytes)
                    _flush(files[side])

    def _put(self, file: IO[bytes], side: Side, index: int, pixels: npt.NDArray[np.uint8]) -> None:
        """Written, not mapped: a full disk is then an exception and not a crash."""
        data = np.ascontiguousarray(pixels).tobytes()
        assert len(data) == self.plan.row_bytes, f"{len(data)} bytes of pixels, {self.plan.row_bytes} planned"
        file.seek(index * self.plan.row_bytes)
        file.write(data)
        self._checksums[side][index] = zlib.crc32(data)

    def commit(self, target: Path, facts: Mapping[str, Any]) -> Pack:
        """Write the manifest (with the caller's `facts`) and give the pack its final name."""
        with disk_problems(self.root):
            for name, data in manifest_files(self._manifest(facts)).items():
                with (self.stage / name).open("wb") as file:
                    file.write(data)
                    _flush(file)
            _sync_folder(self.stage)
            _publish(self.stage, target)
            _sync_folder(self.root)
        pack = read_pack(target)
        assert pack is not None, f"{target} vanished while it was being published"
        return pack

    def _manifest(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        splits = {}
        for side in SIDES:
            kept = sorted(self._checksums[side])
            items = [self.plan.items[side][index] for index in kept]
            splits[side] = {
                "names": [item.name for item in items],
                "content": [item.content for item in items],
                "crc32": [self._checksums[side][index] for index in kept],
                "labels": {name: [item.labels[name] for item in items] for name in self.plan.label_names},
            }
        return {
            "image_size": self.plan.image_size,
            "channels": self.plan.channels,
            "label_names": dict(self.plan.label_names),
            "splits": splits,
            **facts,
        }


def _close_gaps(file: IO[bytes], kept: Sequence[int], row_bytes: int) -> None:
    """Move the kept rows forward over the places of those that failed, and cut off the rest."""
    for new, old in enumerate(kept):
        if new != old:
            file.seek(old * row_bytes)
            row = file.read(row_bytes)
            file.seek(new * row_bytes)
            file.write(row)
    file.truncate(len(kept) * row_bytes)


def _publish(stage: Path, target: Path) -> None:
    """Rename the stage to its final name. Where another process was first, its pack stays if it is whole."""
    try:
        stage.rename(target)
    except OSError:
        if not target.exists():
            raise
        try:
            read_pack(target)
        except DamagedPack:
            discard(target)
            stage.rename(target)


def discard(folder: Path) -> None:
    """Take a damaged pack out of the way: renamed first, so that nobody opens it half deleted."""
    aside = new_stage(folder.parent)
    folder.rename(aside / "damaged")
    shutil.rmtree(aside, ignore_errors=True)


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make names durable as well (POSIX; Windows cannot open folders)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
