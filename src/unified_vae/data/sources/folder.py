"""A folder of images: any layout, any depth, links followed once."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

from unified_vae.core.errors import DataError
from unified_vae.core.printable import printable
from unified_vae.data.records import BadImage, Listing, Quarantined, RawImage
from unified_vae.data.sources.layout import arrange, is_hidden, is_picture, refusal


@dataclass(frozen=True)
class _Found:
    """An image file: its path inside the folder ("/" between parts), bytes, time of change, kind and permissions."""

    path: str
    size: int
    changed_ns: int
    mode: int


@dataclass
class _Walk:
    """What one walk through the folder saw. Folders and files are known by their inode, so loops end."""

    root: Path
    found: list[_Found] = field(default_factory=list)
    refused: list[Quarantined] = field(default_factory=list)
    ignored: int = 0
    repeated: int = 0
    seen: set[tuple[int, int]] = field(default_factory=set)

    def enter(self, folder: Path) -> None:
        """Visit one folder and all below it. Not by recursion: folders may be nested a thousand deep."""
        waiting = [folder]
        while waiting:
            path = waiting.pop()
            below = self._children(path) if self._visit(path) else []
            waiting.extend(reversed(below))

    def _children(self, folder: Path) -> list[Path]:
        """What is to be visited in a folder; nothing where it was visited before."""
        try:
            if self._seen_before(folder.stat()):
                return []
            with os.scandir(folder) as entries:
                children = sorted(entries, key=_visiting_order)
        except OSError as error:
            self.refused.append(Quarantined(self._inside(folder), f"cannot be opened: {error.strerror}"))
            return []
        if {"checkpoints", "config.json", "metrics.jsonl"} <= {child.name for child in children}:
            return []  # the folder of a run: its sheets are no data, wherever --run-dir put them
        return [Path(child.path) for child in children if not is_hidden(child.name)]

    def _visit(self, path: Path) -> bool:
        """Take a file in, or note why not; whether it is a folder."""
        name = self._inside(path)
        try:
            status = path.stat()
        except OSError as error:
            lost = error.errno in (errno.ENOENT, errno.ELOOP)
            why = "a link that leads nowhere" if lost else f"cannot be read: {error.strerror}"
            self._refuse(name, why)
            return False
        if stat.S_ISDIR(status.st_mode):
            return True
        if not is_picture(name):
            self.ignored += 1
        elif not stat.S_ISREG(status.st_mode):
            self._refuse(name, "not a regular file")
        elif self._seen_before(status):
            self.repeated += 1
        elif reason := refusal(name, status.st_size):
            self._refuse(name, reason)
        else:
            self.found.append(_Found(name, status.st_size, status.st_mtime_ns, status.st_mode))
        return False

    def _seen_before(self, status: os.stat_result) -> bool:
        identity = (status.st_dev, status.st_ino)
        known = identity in self.seen
        self.seen.add(identity)
        return known

    def _refuse(self, name: str, reason: str) -> None:
        if is_picture(name):
            self.refused.append(Quarantined(name, reason))
        else:
            self.ignored += 1

    def _inside(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _visiting_order(entry: os.DirEntry[str]) -> tuple[bool, bool, str]:
    """Files, then folders, then links: so a file is known by its own name and not by a link's."""
    return entry.is_symlink(), entry.is_dir(follow_symlinks=False), entry.name


class FolderSource:
    """All images below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.name = printable(root.name or str(root))

    @cached_property
    def _walk(self) -> _Walk:
        walk = _Walk(self.root)
        walk.enter(self.root)
        if any(refused.name == "." for refused in walk.refused):
            raise DataError(f"The folder {self.root} cannot be opened; check its permissions.")
        walk.found.sort(key=lambda found: found.path)
        return walk

    @cached_property
    def _arranged(self) -> tuple[list[str], Listing]:
        walk = self._walk
        notes = [f"{walk.repeated:,} links to files already listed were passed over."] if walk.repeated else []
        used, listing = arrange([found.path for found in walk.found], walk.refused, walk.ignored, notes)
        return [walk.found[index].path for index in used], listing

    def identity(self) -> str:
        """Hash of every image's path, size, time of change and permissions; nothing is opened."""
        digest = hashlib.sha256()
        for found in self._walk.found:
            line = f"{found.path}\0{found.size}\0{found.changed_ns}\0{found.mode}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
        for refused in self._walk.refused:
            digest.update(f"{refused.name}\0{refused.reason}\n".encode("utf-8", "surrogateescape"))
        return f"folder:{digest.hexdigest()}"

    def listing(self) -> Listing:
        return self._arranged[1]

    def read(self, positions: Sequence[int]) -> Iterator[Callable[[], RawImage]]:
        paths, _ = self._arranged
        for position in positions:
            yield partial(_read_file, self.root / paths[position])


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadImage(f"cannot be read: {error.strerror}") from None
