"""A folder of images: any layout, any depth, links followed once. Also the rules for names and paths in any source."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

from unified_vae.core.errors import DataError, escape_name
from unified_vae.data.sources.base import Listing, Loader, Quarantined, Record, Split

# fmt: off
IMAGE_EXTENSIONS = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif",
    ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".jp2", ".j2k", ".jpx", ".avif", ".qoi",
})
"""Extensions of files that are opened; what they really hold is decided by their content."""

UNSUPPORTED_EXTENSIONS = frozenset({
    ".heic", ".heif", ".svg", ".eps", ".psd", ".ico", ".tga", ".exr", ".hdr", ".dng", ".cr2", ".cr3", ".nef",
    ".arw", ".raw",
})
"""Extensions of images that are not read: listed as unusable, so that nobody wonders where they are."""
# fmt: on

SPLIT_NAMES: Mapping[str, str] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}

MAX_FILE_BYTES = 512 * 2**20
"""A larger single file is rejected unread."""


def is_hidden(path: str) -> bool:
    """Return whether a file is the system's and not the user's: a leading dot in a name, or macOS's resource forks."""
    parts = PurePosixPath(path).parts
    return any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in parts)


def has_image_extension(path: str) -> bool:
    """Return whether the name claims to be an image: such a file is either used or listed with a reason."""
    return PurePosixPath(path).suffix.lower() in IMAGE_EXTENSIONS | UNSUPPORTED_EXTENSIONS


def rejection_reason(path: str, size: int) -> str | None:
    """Return why a file is rejected without reading it, or None."""
    extension = PurePosixPath(path).suffix.lower()
    if extension in UNSUPPORTED_EXTENSIONS:
        return f"{extension} files cannot be read: convert it to PNG or JPEG"
    if size > MAX_FILE_BYTES:
        return f"{size / 2**20:,.0f} MB is more than the limit of {MAX_FILE_BYTES // 2**20} MB for one file"
    return None


def arrange(
    paths: Sequence[str], quarantined: Sequence[Quarantined], ignored: int, notes: Sequence[str] = ()
) -> tuple[list[int], Listing]:
    """Assign each path its split and its class by the folders it lies in.

    Args:
        paths: image files, "/" between the parts, relative to the source.
        quarantined: what was rejected already.
        ignored: files that do not claim to be images.

    Returns:
        The indices of the paths that are used (a test/ folder may be left out), and the listing, whose
        records stand in that order.
    """
    notes = list(notes)
    if ignored:
        notes.append(f"{ignored:,} files that are not images were passed over.")

    # Drop the folders that all paths share, as in "photos/train/a.png" and "photos/val/b.png"
    inner = [PurePosixPath(path).parts for path in paths]
    while inner and all(len(parts) > 1 for parts in inner):
        first = inner[0][0]
        if first.lower() in SPLIT_NAMES or any(parts[0] != first for parts in inner):
            break
        inner = [parts[1:] for parts in inner]

    # The split that the top folders give. A lone "train" among other folders is a class of railway photos, not a split
    tops = [SPLIT_NAMES.get(parts[0].lower()) if len(parts) > 1 else None for parts in inner]
    counts = Counter(tops)
    all_train = counts["train"] == len(paths)
    splits: list[Split | None] = ["train" if all_train else None] * len(paths)
    if not counts["train"] or not (all_train or counts["validation"] or counts["test"]):
        used, folders = list(range(len(paths))), [parts[:-1] for parts in inner]
    else:
        if not all_train:
            held_out = "validation" if counts["validation"] else "test"
            splits = ["train" if top == "train" else "validation" if top == held_out else None for top in tops]
            if held_out == "validation" and counts["test"]:
                notes.append(f"The {counts['test']:,} images under test/ are not used: val/ is there for validation.")
            if counts[None]:
                notes.append(f"{counts[None]:,} images outside the train and validation folders were left out.")
        used = [index for index, split in enumerate(splits) if split is not None]
        folders = [inner[index][1:-1] for index in used]

    # Classes: the next folders' names, where every image lies in one and there are at least two
    classes = sorted({folder[0] for folder in folders}) if all(folders) else []
    if len(classes) < 2:
        classes = []
    numbers = {name: number for number, name in enumerate(classes)}
    records = [
        Record(paths[index], splits[index], {"class": numbers[folder[0]]} if classes else {})
        for index, folder in zip(used, folders, strict=True)
    ]
    return used, Listing(records, {"class": classes} if classes else {}, quarantined, notes)


class FolderSource:
    """All images below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.name = escape_name(root.name or str(root))

    @cached_property
    def _scanned(self) -> tuple[list[str], Listing, str]:
        """The paths that are used, the listing in their order, and a hash that changes with any file."""
        files: list[tuple[str, int, int, int]] = []  # path in the folder, size, modification time, permissions
        rejected: list[Quarantined] = []
        ignored = repeated = 0
        seen: set[tuple[int, int]] = set()  # folders and files by their inode, so that loops end
        waiting = [self.root]  # not by recursion: folders may be nested a thousand deep
        while waiting:
            path = waiting.pop()
            name = path.relative_to(self.root).as_posix()
            try:
                status = path.stat()
            except OSError as error:
                dangling = error.errno in (errno.ENOENT, errno.ELOOP)
                why = "a link that leads nowhere" if dangling else f"cannot be read: {error.strerror}"
                if has_image_extension(name):
                    rejected.append(Quarantined(name, why))
                else:
                    ignored += 1
                continue
            inode = (status.st_dev, status.st_ino)

            # A folder: visit its files, then folders, then links, so that a file is known by its own name, not a link's
            if stat.S_ISDIR(status.st_mode):
                if inode in seen:
                    continue
                seen.add(inode)
                try:
                    with os.scandir(path) as entries:
                        children = sorted(
                            entries, key=lambda e: (e.is_symlink(), e.is_dir(follow_symlinks=False), e.name)
                        )
                except OSError as error:
                    rejected.append(Quarantined(name, f"cannot be opened: {error.strerror}"))
                    continue
                if {"checkpoints", "config.json", "metrics.jsonl"} <= {child.name for child in children}:
                    continue  # the folder of a run: its image grids are no data, wherever --run-dir put them
                waiting.extend(Path(child.path) for child in reversed(children) if not is_hidden(child.name))
                continue

            # A file
            if not has_image_extension(name):
                ignored += 1
            elif not stat.S_ISREG(status.st_mode):
                rejected.append(Quarantined(name, "not a regular file"))
            elif inode in seen:
                repeated += 1
            else:
                seen.add(inode)
                if reason := rejection_reason(name, status.st_size):
                    rejected.append(Quarantined(name, reason))
                else:
                    files.append((name, status.st_size, status.st_mtime_ns, status.st_mode))
        if any(entry.name == "." for entry in rejected):
            raise DataError(f"The folder {self.root} cannot be opened; check its permissions.")
        files.sort()
        digest = hashlib.sha256()
        for entry in (*files, *((bad.name, bad.reason) for bad in rejected)):
            digest.update(("\0".join(map(str, entry)) + "\n").encode("utf-8", "surrogateescape"))
        notes = [f"{repeated:,} links to files already listed were passed over."] if repeated else []
        used, listing = arrange([path for path, *_ in files], rejected, ignored, notes)
        return [files[index][0] for index in used], listing, digest.hexdigest()

    def identity(self) -> str:
        """Return a hash of every image's path, size, modification time and permissions; nothing is opened."""
        return f"folder:{self._scanned[2]}"

    def listing(self) -> Listing:
        """See `Source.listing`."""
        return self._scanned[1]

    def read(self, positions: Sequence[int]) -> Iterator[Loader]:
        """See `Source.read`."""
        for position in positions:
            yield (self.root / self._scanned[0][position]).read_bytes
