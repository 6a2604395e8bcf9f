"""The cache of packed images: its folder, room on its disk, and writing a pack so that it is complete or not there.

Everything is written into a stage beside the cache's packs, flushed to the disk, and renamed in one step.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import platformdirs
import psutil

from unified_vae.core.errors import EnvironmentProblem
from unified_vae.core.files import expand_user, sync_file, sync_folder
from unified_vae.data.dataset import MANIFEST, MANIFEST_SHA256, DamagedPack, Pack, read_pack
from unified_vae.data.sources.base import SPLITS, BadImage, Progress, Quarantined, Split

ENVIRONMENT_VARIABLE = "UNIFIED_VAE_CACHE"
_STAGE = ".stage"
_ABANDONED_SECONDS = 24 * 3600  # for stages of other machines and containers, whose processes cannot be checked
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG} if hasattr(errno, "EDQUOT") else {errno.ENOSPC, errno.EFBIG}
_ELSEWHERE = f"set data.cache_dir or ${ENVIRONMENT_VARIABLE} to a folder on another disk"


def cache_root(configured: str | None) -> Path:
    """Return data.cache_dir, else $UNIFIED_VAE_CACHE, else the user's cache folder of this system."""
    chosen = configured or os.environ.get(ENVIRONMENT_VARIABLE)
    if chosen:
        return expand_user(chosen, "data.cache_dir" if configured else f"${ENVIRONMENT_VARIABLE}").absolute()
    return Path(platformdirs.user_cache_dir("unified-vae", appauthor=False))


@contextmanager
def disk_errors(root: Path) -> Iterator[None]:
    """Turn a full or read-only disk into a sentence with a way out."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise EnvironmentProblem(f"The disk of {root} is full; free some space there, or {_ELSEWHERE}.") from None
        raise EnvironmentProblem(
            f"The cache folder {root} cannot be written ({error.strerror or error}); give permission, or {_ELSEWHERE}."
        ) from None


def sweep(root: Path) -> None:
    """Delete stages whose process is gone. Those of running ones stay, also of other machines and containers."""
    for stage in root.glob(f"{_STAGE}-*"):
        try:
            age = time.time() - stage.stat().st_mtime
        except OSError:
            continue  # its owner has just renamed it
        parts = stage.name.split("-")
        local = len(parts) == 4 and parts[1] == _host() and parts[2].isdigit()
        if age > _ABANDONED_SECONDS or (local and not psutil.pid_exists(int(parts[2]))):
            shutil.rmtree(stage, ignore_errors=True)


def _new_stage(root: Path) -> Path:
    """A fresh folder beside the finished ones, so that the final rename stays on one file system."""
    stage = root / f"{_STAGE}-{_host()}-{os.getpid()}-{uuid.uuid4().hex[:12]}"
    with disk_errors(root):
        stage.mkdir(parents=True)
    return stage


def _host() -> str:
    """Where a process number means the same process: containers may share a host's name, and number for themselves."""
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # not Linux
        namespace = ""
    return "".join(letter for letter in socket.gethostname() + namespace if letter.isalnum())


def discard(folder: Path) -> None:
    """Take a damaged pack out of the way: renamed first, so that nobody opens it half deleted."""
    aside = _new_stage(folder.parent)
    folder.rename(aside / "damaged")
    shutil.rmtree(aside, ignore_errors=True)


@dataclass(frozen=True)
class PackItem:
    """One image of a pack.

    Attributes:
        content: SHA-256 of what it is made from, hexadecimal.
    """

    name: str
    content: str
    labels: Mapping[str, int]


@dataclass(frozen=True)
class PackContents:
    """What a pack will hold: the items of each split in their final order."""

    image_size: int
    channels: int
    items: Mapping[Split, Sequence[PackItem]]
    label_names: Mapping[str, list[str]]

    @property
    def row_bytes(self) -> int:
        return self.image_size**2 * self.channels

    @property
    def count(self) -> int:
        return sum(len(items) for items in self.items.values())


Row = tuple[Split, int, npt.NDArray[np.uint8] | BadImage]
"""(split, index in its items, pixels [size, size, channels] or why there are none); rows come in any order."""


class PackWriter:
    """Writes a pack to `target`. Use as a context manager: whatever is not committed is deleted."""

    def __init__(self, target: Path, contents: PackContents) -> None:
        self.target, self.root, self.contents = target, target.parent, contents
        self.stage = _new_stage(self.root)
        self._checksums: dict[Split, dict[int, int]] = {split: {} for split in SPLITS}
        self.pixels: dict[tuple[Split, int], str] = {}  # 64 bits of a hash of each row, hexadecimal
        self.quarantined: list[Quarantined] = []

    def __enter__(self) -> PackWriter:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.stage, ignore_errors=True)

    def counts(self) -> dict[Split, int]:
        """Return how many images were written so far, per split."""
        return {split: len(self._checksums[split]) for split in SPLITS}

    def write(self, rows: Iterator[Row], progress: Progress) -> None:
        """Put each row at its place; the places of bad images are closed up at the end."""
        count, row_bytes = self.contents.count, self.contents.row_bytes
        with ExitStack() as stack:
            # Refuse before any decoding what would not fit; 5 % and 16 MB stay free
            with disk_errors(self.root):
                needed, free = count * row_bytes, shutil.disk_usage(self.root).free
                if needed * 1.05 + 2**24 > free:
                    raise EnvironmentProblem(
                        f"The packed images need {needed / 1e9:.2f} GB in {self.root}, where {free / 1e9:.2f} GB are "
                        f"free; free some space, {_ELSEWHERE}, or lower data.max_images."
                    )
                files = {split: stack.enter_context((self.stage / f"{split}.u8").open("w+b")) for split in SPLITS}

            # Written, not mapped: a full disk is then an exception and not a crash
            for done, (split, index, pixels) in enumerate(rows, start=1):
                if isinstance(pixels, BadImage):
                    self.quarantined.append(Quarantined(self.contents.items[split][index].name, str(pixels)))
                else:
                    data = np.ascontiguousarray(pixels).tobytes()
                    assert len(data) == row_bytes, f"{len(data)} bytes of pixels, {row_bytes} planned"
                    with disk_errors(self.root):
                        files[split].seek(index * row_bytes)
                        files[split].write(data)
                    self._checksums[split][index] = zlib.crc32(data)
                    self.pixels[split, index] = hashlib.blake2b(data, digest_size=8).hexdigest()
                if done % 64 == 0 or done == count:
                    progress("packing images", done, count)

            # Move the rows that were written over the places of those that failed, and cut off the rest
            with disk_errors(self.root):
                for split, file in files.items():
                    kept = sorted(self._checksums[split])
                    for new, old in enumerate(kept):
                        if new != old:
                            file.seek(old * row_bytes)
                            row = file.read(row_bytes)
                            file.seek(new * row_bytes)
                            file.write(row)
                    file.truncate(len(kept) * row_bytes)
                    file.flush()
                    os.fsync(file.fileno())

    def commit(self, background: tuple[int, int, int], facts: Mapping[str, Any]) -> Pack:
        """Write the manifest and give the pack its final name.

        Args:
            background: under transparent images, a part of the fingerprint.
            facts: further entries of the manifest.
        """
        contents = self.contents
        splits: dict[str, dict[str, Any]] = {}
        fingerprint = hashlib.sha256(f"{contents.image_size} {contents.channels} {background}\n".encode())
        for split in SPLITS:
            kept = sorted(self._checksums[split])
            items = [contents.items[split][index] for index in kept]
            splits[split] = {
                "names": [item.name for item in items],
                "content": [item.content for item in items],
                "pixels": [self.pixels[split, index] for index in kept],
                "crc32": [self._checksums[split][index] for index in kept],
                "labels": {name: [item.labels[name] for item in items] for name in contents.label_names},
            }
            fingerprint.update("\n".join([split, *splits[split]["content"], ""]).encode())
        manifest = {
            "image_size": contents.image_size,
            "channels": contents.channels,
            "label_names": dict(contents.label_names),
            "splits": splits,
            "fingerprint": fingerprint.hexdigest(),
            **facts,
        }
        text = json.dumps(manifest, ensure_ascii=True, separators=(",", ":")).encode()
        checksum = f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n".encode()
        with disk_errors(self.root):
            for name, data in ((MANIFEST, text), (MANIFEST_SHA256, checksum)):
                (self.stage / name).write_bytes(data)
                sync_file(self.stage / name)
            sync_folder(self.stage)
            try:
                self.stage.rename(self.target)
            except OSError:
                if not self.target.exists():
                    raise
                try:
                    read_pack(self.target)  # another process was first: its pack stays if it is whole
                except DamagedPack:
                    discard(self.target)
                    self.stage.rename(self.target)
            sync_folder(self.root)
        pack = read_pack(self.target)
        assert pack is not None, f"{self.target} vanished while it was being published"
        return pack
