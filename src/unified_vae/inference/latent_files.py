"""Read files of latents, of this program or of another, some rows at a time; write them as a Parquet table."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from unified_vae.core.checkpoint_format import TENSOR_FILE_ERRORS
from unified_vae.core.errors import DataError, EnvironmentProblem, reason
from unified_vae.core.files import sync_file

INDEX = "index.json"
"""Of a folder of shards."""
ABOUT = "unified_vae"
"""Entry of a safetensors or Parquet file's metadata: the settings that its latents were encoded with, JSON."""
CHUNK = 4096
"""Rows in memory at once. A mapped file is opened anew after each: what was read is then no memory of the process."""

Rows = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Latents:
    """Rows of latents in one file, or in all that an index names.

    Attributes:
        width: numbers per row.
        chunks: gives all rows, some at a time: float32 [k, width].
        ids: name of each row, None without names.
        about: the settings of the encoding; empty for files of other programs.
    """

    path: Path
    rows: int
    width: int
    chunks: Callable[[], Iterator[Rows]]
    ids: Sequence[str] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


def open_latents(path: Path) -> Latents:
    """The latents of a .safetensors, .npy or .parquet file, or of all files that an encoding's index names.

    Args:
        path: such a file, a folder of shards, or the index (.json).

    Raises:
        DataError: it is not there, of no such kind, or damaged.
    """
    if (path / INDEX).is_file():
        path = path / INDEX
    if path.suffix.lower() == ".json" and path.is_file():
        latents = _open_index(path)
    else:
        latents = _open_file(path)
        about, ids = _described_beside(path)
        ids = ids if ids is not None and len(ids) == latents.rows else None
        latents = replace(latents, about=latents.about or about, ids=latents.ids or ids)
    if latents.about.get("format") == 1:
        raise DataError(f"{path} is of an earlier version and no longer read: encode the images anew")
    return latents


def batches(latents: Latents, first: int, size: int) -> Iterator[Rows]:
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


def _open_index(index: Path) -> Latents:
    """All files of an encoding, in their order."""
    try:
        about = _parse_about(index.read_text(encoding="utf-8"))
        files = [index.parent / Path(part["files"][0]).name for part in about["parts"]]
        ids = about["columns"]["id"] if "columns" in about else None
    except (OSError, ValueError, KeyError, TypeError, IndexError) as problem:
        raise DataError(f"{index} does not describe an encoding: name the files of latents") from problem
    parts = [_open_file(path) for path in files]
    rows, widths = sum(part.rows for part in parts), {part.width for part in parts}
    if len(widths) > 1:
        raise DataError(f"the files that {index} names hold latents of different widths")
    if ids is not None and len(ids) != rows:
        raise DataError(f"{index} names {len(ids):,} images, and its files hold {rows:,} rows: encode the images anew")
    return Latents(
        path=index,
        rows=rows,
        width=max(widths, default=0),
        chunks=lambda: (chunk for part in parts for chunk in part.chunks()),
        ids=ids,
        about=about,
    )


def _described_beside(path: Path) -> tuple[dict[str, Any], list[str] | None]:
    """What the index of the encoding that a file is of says: everything, and the names of the file's images."""
    whole = re.sub(r"-\d{5,}-of-\d{5,}$", "", path.stem)  # shards of earlier versions
    for name in (INDEX, f"{path.name}.json", f"{path.stem}.json", f"{whole}{path.suffix}.json", f"{whole}.json"):
        try:
            about, first = _parse_about(path.with_name(name).read_text(encoding="utf-8")), 0
            for part in about.get("parts", ()):
                if path.name in part["files"]:
                    ids = about["columns"]["id"] if "columns" in about else None
                    return about, ids and ids[first : first + part["rows"]]
                first += part["rows"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return {}, None


def _parse_about(text: str) -> dict[str, Any]:
    """The settings of an encoding, from JSON; empty where it is not by `encode`."""
    try:
        about = json.loads(text)
    except ValueError:
        return {}
    parts = (about.get("model"), about.get("latents")) if isinstance(about, dict) else ()
    return about if parts and all(isinstance(part, dict) for part in parts) else {}


# --- the three formats -----------------------------------------------------------------------------------


def _open_file(path: Path) -> Latents:
    if not path.is_file():
        what = "a folder without an index of latents" if path.is_dir() else "not there"
        raise DataError(f"{path} is {what}: name a file of latents")
    match path.suffix.lower():
        case ".safetensors":
            return _open_safetensors(path)
        case ".npy" if path.stem.endswith(".logvar"):
            raise DataError(f"{path} holds log variances: name the file of means, without .logvar")
        case ".npy":
            return _open_npy(path)
        case ".parquet":
            return _open_parquet(path)
    raise DataError(f"{path}: latents are read from .safetensors, .npy, .parquet, or an encoding's folder or index")


def _open_safetensors(path: Path) -> Latents:
    """The tensor `latents` or `mean`, or the only one of floating-point rows."""
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            names, metadata = list(file.keys()), file.metadata() or {}
            shapes = {name: file.get_slice(name).get_shape() for name in names}
            floating = [name for name in names if file.get_slice(name).get_dtype().startswith(("F", "BF"))]
    except TENSOR_FILE_ERRORS as problem:
        raise DataError(f"{path} is no safetensors file, or damaged: {reason(problem)}") from problem
    chosen = [name for name in ("latents", "mean") if name in floating] or floating
    if not chosen or (len(chosen) > 1 and chosen is floating) or len(shapes[chosen[0]]) < 2:
        raise DataError(f"{path} has no tensor `latents` or `mean` of shape [n, latents] (it has: {', '.join(names)})")
    name, (rows, *shape) = chosen[0], shapes[chosen[0]]

    def chunks() -> Iterator[Rows]:
        for start in range(0, rows, CHUNK):
            with safe_open(path, "pt") as file:
                piece = file.get_slice(name)[start : min(start + CHUNK, rows)]
                values: Rows = piece.flatten(1).to(torch.float32, copy=True).numpy()
            yield values

    about = _parse_about(metadata.get(ABOUT) or metadata.get("about", "{}"))
    return Latents(path, rows, math.prod(shape), chunks, about=about)


def _open_npy(path: Path) -> Latents:
    """One array [n, latents] or [n, channels, height, width]."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as problem:
        raise DataError(f"{path} is no .npy file of numbers, or damaged: {reason(problem)}") from problem
    if array.dtype.kind != "f" or array.ndim < 2:
        raise DataError(f"{path} holds {array.dtype} of shape {list(array.shape)}; latents are float [n, latents]")
    rows, *shape = array.shape

    def chunks() -> Iterator[Rows]:
        for start in range(0, rows, CHUNK):
            piece = np.load(path, mmap_mode="r")[start : start + CHUNK]
            yield np.array(piece, np.float32).reshape(len(piece), -1)

    return Latents(path, rows, math.prod(shape), chunks)


def write_npy(paths: Mapping[str, Path], shards: Sequence[Path], shape: tuple[int, ...]) -> None:
    """Write shards as one array per name, of the given shape."""
    from safetensors.numpy import load_file

    for path in paths.values():
        np.lib.format.open_memmap(path, "w+", np.float32, shape)
    first = 0
    for shard in shards:
        tensors = load_file(shard)
        last = first + len(next(iter(tensors.values())))
        for name, path in paths.items():
            np.lib.format.open_memmap(path, "r+")[first:last] = tensors[name]
        first = last
    for path in paths.values():
        sync_file(path)


def parquet_library() -> ModuleType:
    """pyarrow.parquet.

    Raises:
        EnvironmentProblem: it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as problem:
        raise EnvironmentProblem(
            "Parquet files need the package pyarrow: uv sync --extra parquet (or pip install 'unified-vae[parquet]'); "
            "folders of .safetensors and .npy need none"
        ) from problem
    return pyarrow.parquet


def write_parquet(
    path: Path,
    names: Sequence[str],
    shards: Sequence[Path],
    columns: Mapping[str, Sequence[str]],
    settings: Mapping[str, Any],
) -> None:
    """Write shards as one table: `columns` as text, latents as lists of fixed length, a row group per shard."""
    parquet = parquet_library()
    import pyarrow as pa
    from safetensors.numpy import load_file

    width, first = math.prod(settings["latents"]["shape"]), 0
    texts = [pa.field(name, pa.string()) for name in columns]
    lists = [pa.field(name, pa.list_(pa.float32(), width)) for name in names]
    schema = pa.schema(texts + lists, {ABOUT: json.dumps(settings)})
    with parquet.ParquetWriter(path, schema) as writer:
        for shard in shards:
            tensors = load_file(shard)
            last = first + len(tensors[names[0]])
            arrays = [pa.array(values[first:last], pa.string()) for values in columns.values()]
            flat = [pa.array(tensors[name].reshape(-1)) for name in names]
            arrays += [pa.FixedSizeListArray.from_arrays(values, width) for values in flat]
            writer.write_table(pa.table(arrays, schema=schema), row_group_size=last - first)
            first = last
    sync_file(path)


def _open_parquet(path: Path) -> Latents:
    """The column `latents` or `mean`, or the only one that holds lists of numbers; names in the column `id`."""
    parquet = parquet_library()
    import pyarrow as pa

    try:
        with parquet.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
            lists = [f.name for f in schema if pa.types.is_fixed_size_list(f.type) or pa.types.is_list(f.type)]
            column = next((name for name in ("latents", "mean", *lists) if name in schema.names), None)
            if column is None or (column not in ("latents", "mean") and len(lists) > 1):
                raise DataError(f"{path} has no column `latents` or `mean` (columns: {', '.join(schema.names)})")
            ids = [str(name) for name in file.read(["id"])["id"].to_pylist()] if "id" in schema.names else None
            head = next(file.iter_batches(1, columns=[column]), None)
    except (OSError, pa.ArrowException) as problem:
        raise DataError(f"{path} is no Parquet file, or damaged: {reason(problem)}") from problem
    width = 0 if head is None else len(head.column(0)[0])

    def chunks() -> Iterator[Rows]:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(CHUNK, columns=[column]):
                values = np.array(batch.column(0).flatten(), np.float32)
                if values.size != batch.num_rows * width:
                    raise DataError(f"{path}: rows of the column {column!r} are of different lengths")
                yield values.reshape(-1, width)

    about = _parse_about((schema.metadata or {}).get(ABOUT.encode(), b"{}").decode("utf-8", "replace"))
    return Latents(path, rows, width, chunks, ids, about)
