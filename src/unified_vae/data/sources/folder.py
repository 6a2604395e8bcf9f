"""A folder of images: any layout, any depth, links followed once. Also the rules for names and paths in any source."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path, PurePosixPath

from unified_vae.core.errors import DataError, escape_name
from unified_vae.data.sources.base import Listing, Loader, Quarantined, Record, Split

# fmt: off
IMAGE_EXTENSIONS = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif",
    ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".jp2", ".j2k", ".jpx", ".avif", ".qoi",
})
"""Extensions of files that are opened; what they really hold is decided by their content."""

HEIF_EXTENSIONS = frozenset({".heic", ".heif"})
"""Read with the package pillow-heif; without it they are listed as unusable, with the command that adds it."""

OTHER_EXTENSIONS = frozenset({
    ".svg", ".eps", ".psd", ".ico", ".tga", ".exr", ".hdr", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw", ".orf",
    ".rw2", ".raf", ".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".dcm", ".xcf", ".jxl",
})
"""Images and movies that are not read: passed over, and named so that nobody wonders where they are."""
# fmt: on

SPLIT_NAMES: Mapping[str, str] = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation"), "validation"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
MAX_SPLIT_DEPTH = (
    4  # folders above a split: CATEGORY/train (MVTec AD), images/train2017 (COCO), Data/CLS-LOC/train (ImageNet)
)

SYSTEM_FOLDERS = frozenset(
    {
        "__macosx",
        "@eadir",
        "#recycle",
        "@recycle",
        "#snapshot",
        "@tmp",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "recycler",
        "found.000",
    }
)
"""Folders of thumbnails and deleted files that systems keep inside of others; lower case."""

SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF", b"\0\0\0\x0cjP", b"qoif")
"""How files of the formats that are read begin: for files whose names have no suffix."""

MAX_FILE_BYTES = 512 * 2**20
"""A larger single file is rejected unread."""


def is_hidden(path: str) -> bool:
    """Return whether a file is the system's and not the user's: a leading dot in a name, or a folder of the system."""
    parts = PurePosixPath(path).parts
    return any((part.startswith(".") and part != "..") or part.lower() in SYSTEM_FOLDERS for part in parts)


def split_name(folder: str) -> str | None:
    """Return train, validation or test for a folder of that meaning, e.g. `val2017`; None for any other."""
    return SPLIT_NAMES.get(re.sub(r"[-_]?\d{4}$", "", folder.lower()))


def has_image_extension(path: str) -> bool:
    """Return whether the name claims to be an image: such a file is either used or listed with a reason."""
    return PurePosixPath(path).suffix.lower() in IMAGE_EXTENSIONS | HEIF_EXTENSIONS


def has_image_signature(head: bytes) -> bool:
    """Return whether a file without a suffix begins like an image."""
    return head.startswith(SIGNATURES) or head[4:12] in (b"ftypavif", b"ftypheic", b"ftypmif1")


def describe_ignored(ignored: Counter[str]) -> list[str]:
    """Return a note on files that were passed over, by their suffixes (lower case); none where there are none."""
    notes = []
    if others := [f"{ignored[suffix]:,} {suffix}" for suffix in sorted(OTHER_EXTENSIONS & ignored.keys())]:
        notes.append(f"Images and movies that are not read were passed over: {', '.join(others)}.")
    if rest := ignored.total() - sum(ignored[suffix] for suffix in OTHER_EXTENSIONS):
        notes.append(f"{rest:,} files that are not images were passed over.")
    return notes


def rejection_reason(path: str, size: int) -> str | None:
    """Return why a file is rejected without reading it, or None."""
    if PurePosixPath(path).suffix.lower() in HEIF_EXTENSIONS and not has_heif():
        return "HEIC files need the package pillow-heif: uv sync --extra heic"
    if size > MAX_FILE_BYTES:
        return f"{size / 2**20:,.0f} MB is more than the limit of {MAX_FILE_BYTES // 2**20} MB for one file"
    return None


@cache
def has_heif() -> bool:
    """Let Pillow read HEIC, where the package for it is installed; returns whether it is."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def arrange(
    paths: Sequence[str], quarantined: Sequence[Quarantined], ignored: Counter[str], notes: Sequence[str] = ()
) -> tuple[list[int], Listing]:
    """Assign each path its split and its class by the folders it lies in.

    Args:
        paths: image files, "/" between the parts, relative to the source.
        quarantined: what was rejected already.
        ignored: suffix -> how many files with it do not claim to be images.

    Returns:
        The indices of the paths that are used (a test/ folder may be left out), and the listing, whose
        records stand in that order.
    """
    notes = [*notes, *describe_ignored(ignored)]

    # Drop the folders that all paths share, as in "photos/train/a.png" and "photos/val/b.png"
    inner = [PurePosixPath(path).parts for path in paths]
    while inner and all(len(parts) > 1 for parts in inner):
        first = inner[0][0]
        if split_name(first) or any(parts[0] != first for parts in inner):
            break
        inner = [parts[1:] for parts in inner]

    # The split that folders give, at the first depth where there is one to train and another: a lone "train" among
    # other folders is a class of railway photos
    all_train = bool(inner) and all(len(parts) > 1 and split_name(parts[0]) == "train" for parts in inner)
    splits: list[Split | None] = ["train" if all_train else None] * len(paths)
    used, folders = list(range(len(paths))), [parts[1:-1] if all_train else parts[:-1] for parts in inner]
    for depth in range(0 if all_train else MAX_SPLIT_DEPTH):
        sides = [split_name(parts[depth]) if len(parts) > depth + 1 else None for parts in inner]
        counts = Counter(sides)
        if not counts["train"] or not (counts["validation"] or counts["test"]):
            continue
        held_out = "validation" if counts["validation"] else "test"
        splits = ["train" if side == "train" else "validation" if side == held_out else None for side in sides]
        if held_out == "validation" and counts["test"]:
            notes.append(f"The {counts['test']:,} images under test/ are not used: val/ is there for validation.")
        if counts[None]:
            notes.append(f"{counts[None]:,} images outside the train and validation folders were left out.")
        used = [index for index, split in enumerate(splits) if split is not None]
        folders = [(*inner[index][:depth], *inner[index][depth + 1 : -1]) for index in used]
        break

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
        ignored, repeated = Counter[str](), 0
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
                    ignored[path.suffix.lower()] += 1
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
            if not (has_image_extension(name) or (not path.suffix and _begins_like_an_image(path, status))):
                ignored[path.suffix.lower()] += 1
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


def _begins_like_an_image(path: Path, status: os.stat_result) -> bool:
    if not stat.S_ISREG(status.st_mode):
        return False
    try:
        with path.open("rb") as file:
            return has_image_signature(file.read(12))
    except OSError:
        return False
