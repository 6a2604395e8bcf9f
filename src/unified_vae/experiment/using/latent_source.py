"""Latents read back from files, of this program or of another: some rows at a time, whatever their format."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from unified_vae.core.durable import reason
from unified_vae.core.errors import DataError
from unified_vae.core.tensor_file import TENSOR_FILE_ERRORS
from unified_vae.experiment.using import parquet_file
from unified_vae.experiment.using.latent_layout import told

CHUNK = 4096
"""Rows between two openings of a file that is mapped: what was read is then no memory of the process any more."""

_SHARD = re.compile(r"-\d{5,}-of-\d{5,}$")


class Latents(Protocol):
    """Rows of latents."""

    @property
    def rows(self) -> int:
        """How many."""

    @property
    def width(self) -> int:
        """Numbers a row."""

    @property
    def ids(self) -> Sequence[str] | None:
        """Name of each row, None without names."""

    @property
    def about(self) -> Mapping[str, Any]:
        """What `encode` says of them; empty for others."""

    def chunks(self) -> Iterator[npt.NDArray[np.float32]]:
        """All rows, some at a time: float32 [k, width]."""


def open_latents(path: Path) -> Latents:
    """The latents of a .safetensors, .npy or .parquet file, or of all files that an encoding's .json names.

    Raises:
        DataError: it is not there, of no such kind, or damaged.
    """
    if not path.is_file():
        raise DataError(f"{path} is {'a folder' if path.is_dir() else 'not there'}: name a file of latents")
    match path.suffix.lower():
        case ".json":
            return PartedLatents(path)
        case ".safetensors":
            return SafetensorsLatents(path)
        case ".npy" if path.stem.endswith(".logvar"):
            raise DataError(f"{path} holds log variances: name the file of means, without .logvar")
        case ".npy":
            return NpyLatents(path)
        case ".parquet":
            return parquet_file.ParquetLatents(path)
    raise DataError(f"{path}: latents are read from .safetensors, .npy, .parquet, or the .json of an encoding")


def batches(latents: Latents, first: int, size: int) -> Iterator[npt.NDArray[np.float32]]:
    """Rows `first` and following in batches of `size`; the last may be smaller."""
    kept, passed = np.empty((0, latents.width), np.float32), 0
    for chunk in latents.chunks():
        passed += len(chunk)
        if passed <= first:
            continue
        fresh = chunk[max(0, len(chunk) - (passed - first)) :]
        kept = np.concatenate([kept, fresh]) if len(kept) else fresh
        whole = len(kept) // size * size
        yield from np.split(kept[:whole], range(size, whole, size)) if whole else ()
        kept = kept[whole:]
    if len(kept):
        yield kept


class SafetensorsLatents:
    """The tensor `latents` or `mean`, or the only one of floating-point rows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as file:
            names = list(file.keys())
            notes = file.metadata() or {}
            self.about = told(notes.get("about", "{}"))
            self.name = self._chosen(file, names)
            shape = file.get_slice(self.name).get_shape()
            self.rows, self.width = shape[0], int(np.prod(shape[1:]))
            self.ids = self._names(file) if {"ids", "id_ends"} <= set(names) else None
        if self.ids is not None and len(self.ids) != self.rows:
            raise DataError(f"{path} is damaged: it names {len(self.ids):,} images and holds {self.rows:,} rows")

    def _open(self) -> Any:
        from safetensors import safe_open

        try:
            return safe_open(self.path, "pt")
        except TENSOR_FILE_ERRORS as problem:
            raise DataError(f"{self.path} is no safetensors file, or damaged: {reason(problem)}") from problem

    def _chosen(self, file: Any, names: list[str]) -> str:
        floating = [name for name in names if file.get_slice(name).get_dtype().startswith(("F", "BF"))]
        known = next((name for name in ("latents", "mean") if name in floating), None)
        chosen = known or (floating[0] if len(floating) == 1 else None)
        if chosen is None or len(file.get_slice(chosen).get_shape()) < 2:
            raise DataError(
                f"{self.path} has no tensor `latents` or `mean` of shape [n, latents] (it has: {', '.join(names)})"
            )
        return chosen

    def _names(self, file: Any) -> list[str]:
        text = file.get_tensor("ids").numpy().tobytes()
        ends = [0, *file.get_tensor("id_ends").tolist()]
        return [text[a:b].decode("utf-8", "replace") for a, b in pairwise(ends)]

    def chunks(self) -> Iterator[npt.NDArray[np.float32]]:
        for start in range(0, self.rows, CHUNK):
            with self._open() as file:
                piece = file.get_slice(self.name)[start : min(start + CHUNK, self.rows)]
                values: npt.NDArray[np.float32] = piece.flatten(1).to(torch.float32, copy=True).numpy()
            yield values


class NpyLatents:
    """One array [n, latents] or [n, channels, height, width]; names lie beside it in a .csv, if anywhere."""

    def __init__(self, path: Path) -> None:
        self.path = path
        array = self._mapped()
        if array.dtype.kind != "f" or array.ndim < 2:
            raise DataError(f"{path} holds {array.dtype} of shape {list(array.shape)}; latents are float [n, latents]")
        self.rows, self.width = array.shape[0], int(np.prod(array.shape[1:]))
        self.about: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            self.about = told(_index_beside(path).read_text(encoding="utf-8"))
        self.ids = self._names()

    def _mapped(self) -> npt.NDArray[Any]:
        try:
            array: npt.NDArray[Any] = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as problem:
            raise DataError(f"{self.path} is no .npy file of numbers, or damaged: {reason(problem)}") from problem
        return array

    def _names(self) -> list[str] | None:
        try:
            with self.path.with_suffix(".csv").open(encoding="utf-8", newline="") as file:
                names = [row["id"] for row in csv.DictReader(file)]
        except (OSError, KeyError, ValueError, csv.Error):
            return None
        return names if len(names) == self.rows else None

    def chunks(self) -> Iterator[npt.NDArray[np.float32]]:
        for start in range(0, self.rows, CHUNK):
            piece = self._mapped()[start : start + CHUNK]
            yield np.array(piece, np.float32).reshape(len(piece), -1)


def index_of(output: Path) -> Path:
    """What describes an encoding: `x.npy.json`, so that x.npy and x.safetensors lie side by side."""
    return output.with_name(f"{output.name}.json")


def former_index_of(output: Path) -> Path:
    """Where the same lay in earlier versions: `x.json`."""
    return output.with_suffix(".json")


def _index_beside(path: Path) -> Path:
    """What describes the encoding that the file is of, or is a shard of."""
    whole = path.with_name(_SHARD.sub("", path.stem) + path.suffix)
    places = [where(output) for where in (index_of, former_index_of) for output in (path, whole)]
    return next((place for place in places if place.is_file()), places[0])


class PartedLatents:
    """All files of an encoding, in their order."""

    def __init__(self, index: Path) -> None:
        try:
            self.about = told(index.read_text(encoding="utf-8"))
            files = [index.parent / Path(part["files"][0]).name for part in self.about["parts"]]
        except (OSError, ValueError, KeyError, TypeError, IndexError) as problem:
            raise DataError(f"{index} does not describe an encoding: name the files of latents") from problem
        if any(path.suffix.lower() == ".json" for path in files):
            raise DataError(f"{index} names another .json as a file of latents: name the files of latents")
        self.parts = [open_latents(path) for path in files]
        self.rows = sum(part.rows for part in self.parts)
        self.width = self.parts[0].width if self.parts else 0
        if any(part.width != self.width for part in self.parts):
            raise DataError(f"the files that {index} names hold latents of different widths")
        names = [part.ids for part in self.parts]
        self.ids = None if any(some is None for some in names) else [name for some in names for name in some or ()]

    def chunks(self) -> Iterator[npt.NDArray[np.float32]]:
        for part in self.parts:
            yield from part.chunks()
