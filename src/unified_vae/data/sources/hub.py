"""`hf:owner/name`: a dataset of the Hugging Face Hub, through the optional package `datasets`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from unified_vae.core.errors import DataError, EnvironmentProblem
from unified_vae.data.sources.base import BadImage, Listing, Progress, RawImage, Record, Split

_SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "test"),
}


class HubSource:
    """The images of a Hub dataset: its first image column, its first class column, its own splits."""

    def __init__(self, dataset: str, root: Path, progress: Progress) -> None:
        self.dataset = dataset
        self.root = root
        self.progress = progress
        self.name = f"hf:{dataset}"

    @cached_property
    def _parts(self) -> list[tuple[Split | None, Any]]:
        """The splits that are used; the image column stays encoded, so that our own decoder sees the file."""
        try:
            import datasets
        except ImportError:
            raise EnvironmentProblem(
                f"{self.name} needs the package datasets; install it with: uv sync --extra hf"
            ) from None
        self.progress(f"fetching {self.name} (kept in {self.root})", 0, None)
        try:
            splits = datasets.load_dataset(self.dataset, cache_dir=str(self.root))
        except OSError as error:
            raise EnvironmentProblem(
                f"{self.name} could not be fetched ({error}); check the name and the network connection."
            ) from None
        except Exception as error:  # the library's own errors have no common class
            raise DataError(f"{self.name} cannot be opened: {error}") from None
        parts: list[tuple[Split | None, Any]] = []
        for split, names in _SPLIT_NAMES.items():
            name = next((name for name in names if name in splits), None)
            if name is not None:
                parts.append((split, splits[name]))
        if not any(split == "train" for split, _ in parts):
            parts = [(None, part) for part in splits.values()]
        column = self._image_column(parts[0][1])
        return [(split, part.cast_column(column, datasets.Image(decode=False))) for split, part in parts]

    def _image_column(self, part: Any) -> str:
        """The first column of type Image."""
        for column, feature in part.features.items():
            if type(feature).__name__ == "Image":
                return str(column)
        raise DataError(f"{self.name} has no image column (columns: {', '.join(part.features)}).")

    def identity(self) -> str:
        """Return the library's own fingerprints of the splits, which follow from the revision on the Hub."""
        return f"{self.name}:" + ",".join(f"{len(part)}:{part._fingerprint}" for _, part in self._parts)

    def listing(self) -> Listing:
        first = self._parts[0][1]
        label = next((name for name, kind in first.features.items() if type(kind).__name__ == "ClassLabel"), None)
        records = []
        for split, part in self._parts:
            numbers = [None] * len(part) if label is None else part[label]
            for index, number in enumerate(numbers):
                labels = {} if number is None or number < 0 else {"class": int(number)}
                records.append(Record(f"{split or 'image'} {index}", split, labels))
        labeled = label is not None and all(record.labels for record in records)
        return Listing(records, {"class": list(first.features[label].names)} if labeled else {})

    def read(self, positions: Sequence[int]) -> Iterator[Callable[[], RawImage]]:
        """Read in sequence: Arrow tables are read fastest from front to back."""
        column = self._image_column(self._parts[0][1])
        for position in positions:
            for _, part in self._parts:
                if position < len(part):
                    yield partial(_content, part[position][column])
                    break
                position -= len(part)


def _content(cell: dict[str, Any] | None) -> bytes:
    """The encoded file of one cell: inline, or at a path on this disk."""
    if cell is not None and cell.get("bytes"):
        return bytes(cell["bytes"])
    if cell is None or not cell.get("path"):
        raise BadImage("an empty cell")
    return Path(cell["path"]).read_bytes()
