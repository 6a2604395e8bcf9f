"""Datasets of libraries: `torchvision:NAME`, by the name of its class, and `hf:owner/name`, of the Hugging Face Hub.

The libraries are imported only when they are needed: torchvision when the packed images are not in the cache yet.
"""

from __future__ import annotations

import hashlib
import inspect
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from PIL import Image

from unified_vae.core.errors import DataError, EnvironmentProblem, nearest
from unified_vae.data.cache import disk_errors
from unified_vae.data.sources.base import SPLITS, BadImage, Loader, Part, PartedSource, Progress, RawImage, Split


class TorchvisionSource(PartedSource):
    """The training and validation parts of a torchvision dataset, kept below the cache folder."""

    def __init__(self, dataset: str, cache: Path, progress: Progress) -> None:
        self.dataset = dataset
        self.root = cache / "torchvision" / dataset
        self.progress = progress
        self.name = f"torchvision:{dataset}"

    def identity(self) -> str:
        """Return names, sizes and times of the downloaded files; torchvision is needed only to download them."""
        if not any(self.root.rglob("*")):
            _ = self.parts
        digest = hashlib.sha256()
        for path in sorted(self.root.rglob("*")):
            if path.is_file():
                status = path.stat()
                line = f"{path.relative_to(self.root).as_posix()}\0{status.st_size}\0{status.st_mtime_ns}\n"
                digest.update(line.encode())
        return f"{self.name}:{digest.hexdigest()}"

    @cached_property
    def parts(self) -> list[Part]:
        """The parts that the dataset's class offers: by `train=`, by `split=`, or the whole."""
        try:
            from torchvision import datasets
        except ImportError as error:
            raise EnvironmentProblem(f"{self.name} needs torchvision, which cannot be imported: {error}.") from None
        known = [name for name in datasets.__all__ if inspect.isclass(getattr(datasets, name))]
        if self.dataset not in known:
            raise DataError(f"torchvision has no dataset {self.dataset!r}. {nearest(self.dataset, known)}")
        dataset_class = getattr(datasets, self.dataset)
        parameters = inspect.signature(dataset_class).parameters
        opened: dict[Split | None, Any]
        if "train" in parameters:
            opened = {split: self._open(dataset_class, train=split == "train") for split in SPLITS}
        elif "split" in parameters:
            opened = {"train": self._open(dataset_class, split="train")}
            for name in ("val", "valid", "validation", "test"):
                try:
                    opened["validation"] = self._open(dataset_class, split=name)
                    break
                except DataError:  # this dataset has another name for it
                    if name == "test":
                        raise
        else:
            opened = {None: self._open(dataset_class)}
        has_classes = all(getattr(items, "classes", None) for items in opened.values())
        return [
            Part(split or "image", split, items, getattr(items, "targets", None) if has_classes else None)
            for split, items in opened.items()
        ]

    def _open(self, dataset_class: Any, **choice: Any) -> Any:
        """One part of the dataset; downloaded, and announced, where it is not on the disk yet."""
        parameters = inspect.signature(dataset_class).parameters
        arguments = {"root": str(self.root), **choice} if "root" in parameters else choice
        try:
            if "download" in parameters:
                with disk_errors(self.root):
                    self.root.mkdir(parents=True, exist_ok=True)
                try:
                    return dataset_class(**arguments, download=False)
                except (RuntimeError, OSError):  # how torchvision says "not found"
                    self.progress(f"downloading {self.name} into {self.root}", 0, None)
                    arguments["download"] = True
            return dataset_class(**arguments)
        except OSError as error:  # urllib's errors are OSErrors
            raise EnvironmentProblem(
                f"{self.name} could not be downloaded ({error}); connect to the network, or put its files "
                f"into {self.root}."
            ) from None
        except (RuntimeError, TypeError, ValueError, ImportError) as error:
            raise DataError(f"{self.name} cannot be opened: {error}") from None

    def class_names(self) -> list[str]:
        return [str(name) for name in self.parts[0].items.classes]

    def loader(self, items: Any, index: int) -> Loader:
        """Read in sequence: torchvision does not promise that its datasets may be read by several threads."""
        try:
            item = items[index]
        except (OSError, SyntaxError, ValueError, RuntimeError) as error:
            return partial(_as_image, None, str(error))
        image = item[0] if isinstance(item, tuple) else item
        return partial(_as_image, image, f"torchvision gave a {type(image).__name__}, not an image")


def _as_image(image: object, reason: str) -> RawImage:
    if isinstance(image, Image.Image):
        return image
    raise BadImage(reason)


class HubSource(PartedSource):
    """The images of a Hub dataset: its first image column, its first class column, its own splits."""

    def __init__(self, dataset: str, cache: Path, progress: Progress) -> None:
        self.dataset = dataset
        self.root = cache / "huggingface"
        self.progress = progress
        self.name = f"hf:{dataset}"

    @cached_property
    def parts(self) -> list[Part]:
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
        tables: list[tuple[Split | None, Any]] = [(None, table) for table in splits.values()]
        if "train" in splits:
            tables = [("train", splits["train"])]
            validation = next((name for name in ("validation", "valid", "val", "test") if name in splits), None)
            if validation is not None:
                tables.append(("validation", splits[validation]))
        image, label = (_first_column(tables[0][1], kind) for kind in ("Image", "ClassLabel"))
        if image is None:
            raise DataError(f"{self.name} has no image column (columns: {', '.join(tables[0][1].features)}).")
        parts = []
        for split, table in tables:
            numbers = None if label is None else list(table[label])
            if numbers is not None and any(number is None or number < 0 for number in numbers):
                numbers = None
            encoded = table.cast_column(image, datasets.Image(decode=False))
            parts.append(Part(split or "image", split, encoded, numbers))
        return parts

    def identity(self) -> str:
        """Return the library's own fingerprints of the splits, which follow from the revision on the Hub."""
        return f"{self.name}:" + ",".join(f"{len(part.items)}:{part.items._fingerprint}" for part in self.parts)

    def class_names(self) -> list[str]:
        features = self.parts[0].items.features
        return list(features[_first_column(self.parts[0].items, "ClassLabel")].names)

    def loader(self, items: Any, index: int) -> Loader:
        """Read in sequence: Arrow tables are read fastest from front to back."""
        return partial(_content, items[index][_first_column(items, "Image")])


def _first_column(table: Any, kind: str) -> str | None:
    """The first column of a type of the library `datasets`, by the type's name."""
    return next((column for column, feature in table.features.items() if type(feature).__name__ == kind), None)


def _content(cell: dict[str, Any] | None) -> bytes:
    """The encoded file of one cell: inline, or at a path on this disk."""
    if cell is not None and cell.get("bytes"):
        return bytes(cell["bytes"])
    if cell is None or not cell.get("path"):
        raise BadImage("an empty cell")
    return Path(cell["path"]).read_bytes()
