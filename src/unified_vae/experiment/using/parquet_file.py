"""Latents as a table of Parquet, through pyarrow, which is an extra."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from unified_vae.core.durable import reason, sync_file
from unified_vae.core.errors import DataError, EnvironmentProblem
from unified_vae.experiment.using.latent_layout import SIDES, told

GROUP = 4096  # rows that are in memory at once
ABOUT = b"unified_vae"  # the entry of the file's own notes


def library() -> ModuleType:
    """pyarrow.parquet.

    Raises:
        EnvironmentProblem: it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as problem:
        raise EnvironmentProblem(
            "Parquet files need the package pyarrow: uv sync --extra parquet (or pip install 'unified-vae[parquet]'); "
            ".safetensors and .npy need none"
        ) from problem
    return pyarrow.parquet


def write(rows: Path, target: Path) -> None:
    """The same table as a finished safetensors file, a group of rows at a time."""
    import pyarrow as pa
    from safetensors import safe_open

    parquet = library()
    with ExitStack() as stack:
        file = stack.enter_context(safe_open(rows, "np"))
        about = file.metadata()
        columns = _Columns(file, json.loads(about["label_names"]))
        schema = pa.schema(columns.fields(), {ABOUT: about["about"].encode()})
        writer = stack.enter_context(parquet.ParquetWriter(target, schema))
        for start in range(0, columns.count, GROUP):
            arrays = columns.arrays(start, min(start + GROUP, columns.count))
            writer.write_table(pa.table(arrays, schema=schema), row_group_size=GROUP)
    sync_file(target)


class _Columns:
    """The columns of the table: names and labels as words, latents as lists of fixed length."""

    def __init__(self, file: Any, label_names: dict[str, list[str]]) -> None:
        self.file, self.label_names = file, label_names
        self.ends = np.concatenate([[0], file.get_tensor("id_ends")])
        self.names = file.get_tensor("ids").tobytes()
        self.count = len(self.ends) - 1
        self.latents = [name for name in ("mean", "logvar", "latents") if name in file.keys()]  # noqa: SIM118

    def fields(self) -> list[Any]:
        import pyarrow as pa

        width = int(np.prod(self.file.get_slice(self.latents[0]).get_shape()[1:]))
        words = pa.dictionary(pa.int32(), pa.string())
        return [
            pa.field("id", pa.string()),
            pa.field("split", words),
            *(pa.field(name, words) for name in self.label_names),
            *(pa.field(name, pa.list_(pa.float32(), width)) for name in self.latents),
        ]

    def arrays(self, start: int, stop: int) -> list[Any]:
        import pyarrow as pa

        ends = self.ends[start : stop + 1]
        ids = [self.names[a:b].decode() for a, b in pairwise(ends)]
        labels = [
            _words(self.file.get_slice(f"label.{name}")[start:stop], values)
            for name, values in self.label_names.items()
        ]
        latents = []
        for name in self.latents:
            values = self.file.get_slice(name)[start:stop].reshape(stop - start, -1)
            latents.append(pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1]))
        return [pa.array(ids), _words(self.file.get_slice("split")[start:stop], SIDES), *labels, *latents]


def _words(numbers: npt.NDArray[Any], names: Sequence[str]) -> Any:
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(pa.array(numbers.astype(np.int32)), pa.array(list(names), pa.string()))


class ParquetLatents:
    """The latents of a table: of the column `latents` or `mean`, or of the only one that holds lists of numbers."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self.path = path
        with self._open() as file:
            schema = file.schema_arrow
            lists = [f.name for f in schema if pa.types.is_fixed_size_list(f.type) or pa.types.is_list(f.type)]
            self.column = next((name for name in ("latents", "mean", *lists) if name in schema.names), None)
            if self.column is None or (self.column not in ("latents", "mean") and len(lists) > 1):
                raise DataError(f"{path} has no column `latents` or `mean` (columns: {', '.join(schema.names)})")
            self.rows = file.metadata.num_rows
            self.about = told((schema.metadata or {}).get(ABOUT, b"{}").decode("utf-8", "replace"))
            named = "id" in schema.names
            self.ids = [str(name) for name in file.read(["id"])["id"].to_pylist()] if named else None
            first = next(file.iter_batches(1, columns=[self.column]), None)
            self.width = 0 if first is None else len(first.column(0)[0])

    def _open(self) -> Any:
        parquet = library()
        import pyarrow as pa

        try:
            return parquet.ParquetFile(self.path, memory_map=False)
        except (OSError, pa.ArrowException) as problem:
            raise DataError(f"{self.path} is no Parquet file, or damaged: {reason(problem)}") from problem

    def chunks(self) -> Iterator[npt.NDArray[np.float32]]:
        """All rows, some at a time: float32 [k, width]."""
        with self._open() as file:
            for batch in file.iter_batches(GROUP, columns=[self.column]):
                values = np.array(batch.column(0).flatten(), np.float32)
                if values.size != batch.num_rows * self.width:
                    raise DataError(f"{self.path}: rows of the column {self.column!r} are of different lengths")
                yield values.reshape(-1, self.width)
