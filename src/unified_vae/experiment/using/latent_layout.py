"""Files of latents whose rows can be written one after the other, at places that are known beforehand.

A safetensors file is a header and then all tensors; a .npy file is a header and one array. Both are laid out at once,
and filled from the first row to the last: a writer that was killed goes on where it was.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from unified_vae.core.durable import sync_file

Array = npt.NDArray[Any]
_SAFETENSORS_NAMES = {"float32": "F32", "int64": "I64", "uint8": "U8"}
SIDES = ("train", "validation")


@dataclass(frozen=True)
class Shard:
    """What a file of latents holds beside the latents.

    Attributes:
        ids: name of each image.
        sides: 0 to train, 1 to validate; uint8 [n].
        labels: label name -> int64 [n].
        label_names: label name -> names of its values.
        arrays: names of the arrays of latents: `mean` and `logvar`, or `latents`.
        shape: of one image's latents.
        about: what else the file says of itself.
    """

    ids: Sequence[str]
    sides: npt.NDArray[np.uint8]
    labels: Mapping[str, npt.NDArray[np.int64]]
    label_names: Mapping[str, list[str]]
    arrays: Sequence[str]
    shape: tuple[int, ...]
    about: Mapping[str, Any]

    @property
    def row_bytes(self) -> int:
        """Of one image in one array."""
        return 4 * int(np.prod(self.shape))


@dataclass(frozen=True)
class Region:
    """Where the rows of an array lie."""

    path: Path
    offset: int


@dataclass(frozen=True)
class Layout:
    """Files of known sizes, what is in them from the start, and where the rows go.

    Attributes:
        sizes: file -> bytes.
        pieces: (file, offset, bytes) of everything but the rows of latents.
        regions: array -> its rows.
    """

    sizes: Mapping[Path, int]
    pieces: Sequence[tuple[Path, int, bytes]]
    regions: Mapping[str, Region]

    def is_there(self) -> bool:
        """Whether all files are there, of their sizes."""
        return all(path.is_file() and path.stat().st_size == size for path, size in self.sizes.items())

    def write(self) -> None:
        """Make the files anew, without rows."""
        for path, size in self.sizes.items():
            with path.open("wb") as file:
                for owner, offset, data in self.pieces:
                    if owner == path:
                        file.seek(offset)
                        file.write(data)
                file.truncate(size)
            sync_file(path)  # a file without rows, as a table of names, is not written to again


# --- safetensors -----------------------------------------------------------------------------------------


def safetensors_layout(path: Path, shard: Shard) -> Layout:
    """One file. Names are UTF-8, one after the other; `id_ends` says where each ends."""
    names = [name.encode() for name in shard.ids]
    tensors: dict[str, Array | None] = {"id_ends": np.cumsum([len(name) for name in names], dtype=np.int64)}
    tensors |= {f"label.{name}": values for name, values in shard.labels.items()}
    tensors |= dict.fromkeys(shard.arrays)
    tensors |= {"split": shard.sides, "ids": np.frombuffer(b"".join(names), np.uint8)}
    header, offsets, size = _header(tensors, shard)
    whole = [(path, offsets[name], values.tobytes()) for name, values in tensors.items() if values is not None]
    regions = {name: Region(path, offsets[name]) for name in shard.arrays}
    return Layout({path: size}, [(path, 0, header), *whole], regions)


def _header(tensors: Mapping[str, Array | None], shard: Shard) -> tuple[bytes, dict[str, int], int]:
    """The header, where each tensor begins, and the size of all. Wider numbers come first, so that all are aligned."""
    about = {"format": "pt", "about": json.dumps(shard.about), "label_names": json.dumps(shard.label_names)}
    entries: dict[str, Any] = {"__metadata__": about}
    begins, offset = {}, 0
    for name, values in tensors.items():
        shape = [len(shard.ids), *shard.shape] if values is None else list(values.shape)
        size = len(shard.ids) * shard.row_bytes if values is None else values.nbytes
        kind = "float32" if values is None else str(values.dtype)
        entries[name] = {
            "dtype": _SAFETENSORS_NAMES[kind], "shape": shape, "data_offsets": [offset, offset + size],
        }  # fmt: skip
        begins[name], offset = offset, offset + size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return head, {name: len(head) + begin for name, begin in begins.items()}, len(head) + offset


# --- npy -------------------------------------------------------------------------------------------------


def npy_layout(paths: Mapping[str, Path], table: Path, shard: Shard) -> Layout:
    """A file for each array, and a table of names, sides and labels."""
    words = _csv(shard)
    sizes, pieces, regions = {table: len(words)}, [(table, 0, words)], {}
    for name, path in paths.items():
        text = io.BytesIO()
        shape = (len(shard.ids), *shard.shape)
        np.lib.format.write_array_header_1_0(text, {"descr": "<f4", "fortran_order": False, "shape": shape})
        head = text.getvalue()
        sizes[path] = len(head) + len(shard.ids) * shard.row_bytes
        pieces.append((path, 0, head))
        regions[name] = Region(path, len(head))
    return Layout(sizes, pieces, regions)


def _csv(shard: Shard) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "split", *shard.labels])
    columns = [label_words(shard, name) for name in shard.labels]
    sides = [SIDES[side] for side in shard.sides]
    writer.writerows(zip(shard.ids, sides, *columns, strict=True))
    return text.getvalue().encode()


def label_words(shard: Shard, name: str) -> list[str]:
    """The values of a label by their names."""
    names = shard.label_names[name]
    return [names[value] for value in shard.labels[name]]


# --- what files say of themselves -------------------------------------------------------------------------


def told(text: str) -> dict[str, Any]:
    """What `encode` says of latents, from JSON; empty where it is not by `encode`."""
    try:
        about = json.loads(text)
    except ValueError:
        return {}
    parts = (about.get("model"), about.get("latents")) if isinstance(about, dict) else ()
    return about if parts and all(isinstance(part, dict) for part in parts) else {}


# --- rows ------------------------------------------------------------------------------------------------


class RowWriter:
    """Puts rows of latents at their places. Use as a context manager."""

    def __init__(self, regions: Mapping[str, Region], row_bytes: int) -> None:
        self.regions, self.row_bytes = regions, row_bytes
        self._files: dict[str, IO[bytes]] = {
            name: region.path.open("r+b", buffering=0) for name, region in regions.items()
        }

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def put(self, first: int, arrays: Mapping[str, npt.NDArray[np.float32]]) -> None:
        """Write rows `first` and following of each array."""
        for name, values in arrays.items():
            self._files[name].seek(self.regions[name].offset + first * self.row_bytes)
            rest = np.ascontiguousarray(values, "<f4").reshape(-1).data.cast("B")
            while rest:
                rest = rest[self._files[name].write(rest) :]

    def sync(self) -> None:
        """Wait until what was put is on the disk."""
        for region in self.regions.values():
            sync_file(region.path)
