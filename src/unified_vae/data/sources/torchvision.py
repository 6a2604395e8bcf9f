"""`torchvision:NAME`: a dataset of torchvision, by the name of its class, e.g. torchvision:CIFAR10.

torchvision is imported only when the packed images are not in the cache yet.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from PIL import Image

from unified_vae.core.errors import DataError, EnvironmentProblem, nearest
from unified_vae.data.sources.base import BadImage, Listing, Progress, RawImage, Record, Split

_VALIDATION_SPLITS = ("val", "valid", "validation", "test")


class TorchvisionSource:
    """The training and validation parts of a torchvision dataset, kept below the cache folder."""

    def __init__(self, dataset: str, root: Path, progress: Progress) -> None:
        self.dataset = dataset
        self.root = root / dataset
        self.progress = progress
        self.name = f"torchvision:{dataset}"

    def identity(self) -> str:
        """Return names, sizes and times of the downloaded files; torchvision is needed only to download them."""
        if not any(self.root.rglob("*")):
            _ = self._parts
        digest = hashlib.sha256()
        for path in sorted(self.root.rglob("*")):
            if path.is_file():
                status = path.stat()
                line = f"{path.relative_to(self.root).as_posix()}\0{status.st_size}\0{status.st_mtime_ns}\n"
                digest.update(line.encode())
        return f"{self.name}:{digest.hexdigest()}"

    @cached_property
    def _parts(self) -> list[tuple[Split | None, Any]]:
        try:
            from torchvision import datasets
        except ImportError as error:
            raise EnvironmentProblem(f"{self.name} needs torchvision, which cannot be imported: {error}.") from None
        known = [name for name in datasets.__all__ if inspect.isclass(getattr(datasets, name))]
        if self.dataset not in known:
            raise DataError(f"torchvision has no dataset {self.dataset!r}. {nearest(self.dataset, known)}")
        dataset_class = getattr(datasets, self.dataset)
        parameters = inspect.signature(dataset_class).parameters
        if "train" in parameters:
            return [
                ("train", self._open(dataset_class, train=True)),
                ("validation", self._open(dataset_class, train=False)),
            ]
        if "split" not in parameters:
            return [(None, self._open(dataset_class))]
        train = self._open(dataset_class, split="train")
        for split in _VALIDATION_SPLITS[:-1]:
            try:
                return [("train", train), ("validation", self._open(dataset_class, split=split))]
            except DataError:  # this dataset has another name for it
                continue
        return [("train", train), ("validation", self._open(dataset_class, split=_VALIDATION_SPLITS[-1]))]

    def _open(self, dataset_class: Any, **choice: Any) -> Any:
        """One part of the dataset; downloaded, and announced, where it is not on the disk yet."""
        parameters = inspect.signature(dataset_class).parameters
        arguments = {"root": str(self.root), **choice} if "root" in parameters else choice
        if "download" in parameters:
            try:
                self.root.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise EnvironmentProblem(
                    f"{self.root} cannot be made ({error.strerror}); set data.cache_dir to a folder you can write to."
                ) from None
            try:
                return dataset_class(**arguments, download=False)
            except (TypeError, ValueError, ImportError) as error:
                raise DataError(f"{self.name} cannot be opened: {error}") from None
            except (RuntimeError, OSError):  # how torchvision says "not found"
                self.progress(f"downloading {self.name} into {self.root}", 0, None)
                arguments["download"] = True
        try:
            return dataset_class(**arguments)
        except OSError as error:  # urllib's errors are OSErrors
            raise EnvironmentProblem(
                f"{self.name} could not be downloaded ({error}); connect to the network, or put its files "
                f"into {self.root}."
            ) from None
        except (RuntimeError, TypeError, ValueError, ImportError) as error:
            raise DataError(f"{self.name} cannot be opened: {error}") from None

    def listing(self) -> Listing:
        class_names = [str(name) for name in getattr(self._parts[0][1], "classes", [])]
        records = []
        for split, part in self._parts:
            targets = getattr(part, "targets", None) if class_names else None
            for index in range(len(part)):
                labels = {} if targets is None else {"class": int(targets[index])}
                records.append(Record(f"{split or 'image'} {index}", split, labels))
        return Listing(records, {"class": class_names} if class_names else {})

    def read(self, positions: Sequence[int]) -> Iterator[Callable[[], RawImage]]:
        """Read in sequence: torchvision does not promise that its datasets may be read by several threads."""
        for position in positions:
            for _, part in self._parts:
                if position < len(part):
                    break
                position -= len(part)
            try:
                item = part[position]
            except (OSError, SyntaxError, ValueError, RuntimeError) as error:
                yield partial(_as_raw, None, str(error))
                continue
            image = item[0] if isinstance(item, tuple) else item
            yield partial(_as_raw, image, f"torchvision gave a {type(image).__name__}, not an image")


def _as_raw(image: object, reason: str) -> RawImage:
    if isinstance(image, Image.Image):
        return image
    raise BadImage(reason)
