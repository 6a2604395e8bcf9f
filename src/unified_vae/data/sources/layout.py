"""What the paths inside a source say: which files are images, the split folders, the class folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from unified_vae.data.records import Listing, Quarantined, Record, Side

# fmt: off
READABLE = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif",
    ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".jp2", ".j2k", ".jpx", ".avif", ".qoi",
})
# fmt: on
"""Extensions of files that are opened; what they really hold is decided by their content."""

# fmt: off
UNREADABLE = frozenset({
    ".heic", ".heif", ".svg", ".eps", ".psd", ".ico", ".tga", ".exr", ".hdr", ".dng", ".cr2", ".cr3", ".nef",
    ".arw", ".raw",
})
# fmt: on
"""Extensions of pictures that are not read: listed as unusable, so that nobody wonders where they are."""

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
"""A larger single file is refused unread."""


def is_hidden(path: str) -> bool:
    """Files of the system, not of the user: names with a leading dot, and macOS's resource forks."""
    parts = PurePosixPath(path).parts
    return any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in parts)


def extension(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def is_picture(path: str) -> bool:
    """Whether the name claims to be a picture: such a file is either used or listed with a reason."""
    return extension(path) in READABLE or extension(path) in UNREADABLE


def refusal(path: str, size: int) -> str | None:
    """Why a file is refused without reading it, or None."""
    if extension(path) in UNREADABLE:
        return f"{extension(path)} files cannot be read: convert it to PNG or JPEG"
    if size > MAX_FILE_BYTES:
        return f"{size / 2**20:,.0f} MB is more than the limit of {MAX_FILE_BYTES // 2**20} MB for one file"
    return None


def arrange(
    paths: Sequence[str], quarantined: Sequence[Quarantined], ignored: int, notes: Sequence[str] = ()
) -> tuple[list[int], Listing]:
    """Give each path its side of the split and its class.

    Args:
        paths: image files, "/" between the parts, relative to the source.
        quarantined: what was refused already.
        ignored: files that do not claim to be pictures.

    Returns:
        The indices of the paths that are used (a test/ folder may be left alone), and the listing, whose
        records stand in that order.
    """
    notes = list(notes)
    if ignored:
        notes.append(f"{ignored:,} files that are not images were passed over.")
    inner = _without_common_folder([PurePosixPath(path).parts for path in paths])
    sides, split_notes = _sides(inner)
    if sides is None:
        used, folders = list(range(len(paths))), [parts[:-1] for parts in inner]
    else:
        used = [index for index, side in enumerate(sides) if side is not None]
        folders = [inner[index][1:-1] for index in used]
    classes = _class_names(folders)
    records = [
        Record(
            name=paths[index],
            side=None if sides is None else sides[index],
            labels={"class": classes.index(folder[0])} if classes else {},
        )
        for index, folder in zip(used, folders, strict=True)
    ]
    label_names = {"class": classes} if classes else {}
    return used, Listing(records, label_names, quarantined, [*notes, *split_notes])


def _without_common_folder(paths: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Drop the folders that all paths share, as in "photos/train/a.png" and "photos/val/b.png"."""
    while paths and all(len(parts) > 1 for parts in paths):
        first = paths[0][0]
        if first.lower() in SPLIT_NAMES or any(parts[0] != first for parts in paths):
            break
        paths = [parts[1:] for parts in paths]
    return paths


def _sides(paths: list[tuple[str, ...]]) -> tuple[list[Side | None] | None, list[str]]:
    """The side that the top folder gives each path; None for the whole where there are no split folders.

    A lone folder called "train" among other folders is a class of railway pictures, not a split.
    """
    tops = [SPLIT_NAMES.get(parts[0].lower()) if len(parts) > 1 else None for parts in paths]
    counts = Counter(tops)
    whole_is_train = counts["train"] == len(paths)
    if not paths or not counts["train"] or not (whole_is_train or counts["validation"] or counts["test"]):
        return None, []
    if whole_is_train:
        return ["train"] * len(paths), []
    held_out = "validation" if counts["validation"] else "test"
    sides: list[Side | None] = [
        "train" if top == "train" else "validation" if top == held_out else None for top in tops
    ]
    notes = []
    if held_out == "validation" and counts["test"]:
        notes.append(f"The {counts['test']:,} images under test/ are left alone: val/ is there for validation.")
    if counts[None]:
        notes.append(f"{counts[None]:,} images outside the train and validation folders were left out.")
    return sides, notes


def _class_names(folders: list[tuple[str, ...]]) -> list[str]:
    """The names of the first folders, sorted, where every image lies in one and there are at least two."""
    if not all(folders):
        return []
    names = sorted({folder[0] for folder in folders})
    return names if len(names) > 1 else []
