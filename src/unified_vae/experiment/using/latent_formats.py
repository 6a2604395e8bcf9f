"""The three kinds of files that latents are written to: what belongs to each, and how it is finished."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from unified_vae.core.errors import ConfigError
from unified_vae.experiment.using import parquet_file
from unified_vae.experiment.using.latent_layout import Layout, Shard, npy_layout, safetensors_layout


class Format(ABC):
    """How latents lie in a stage, and how they get their final names.

    Attributes:
        copies: how often they lie on the disk while that is done.
    """

    copies = 1

    def check(self) -> None:
        """Raise EnvironmentProblem where a package is missing."""
        return

    @abstractmethod
    def files(self, target: Path, arrays: Sequence[str]) -> list[Path]:
        """What `target` consists of, itself first."""

    @abstractmethod
    def layout(self, stage: Path, targets: Sequence[Path], shard: Shard) -> Layout:
        """The files that the rows are written to."""

    def is_whole(self, stage: Path, targets: Sequence[Path]) -> bool:
        """Whether each file is there, in the stage or under its final name; asked where all rows are written."""
        return all((stage / path.name).is_file() or path.is_file() for path in targets)

    def finish(self, stage: Path, targets: Sequence[Path]) -> None:
        """Give the files their final names; those that have them already stay."""
        for path in targets:
            if (stage / path.name).is_file():
                (stage / path.name).replace(path)


class SafetensorsFormat(Format):
    """One file with everything in it."""

    def files(self, target: Path, arrays: Sequence[str]) -> list[Path]:
        return [target]

    def layout(self, stage: Path, targets: Sequence[Path], shard: Shard) -> Layout:
        return safetensors_layout(stage / targets[0].name, shard)


class NpyFormat(Format):
    """An array a file, and names and labels in a table: x.npy, x.logvar.npy, x.csv."""

    def files(self, target: Path, arrays: Sequence[str]) -> list[Path]:
        others = [target.with_suffix(f".{name}.npy") for name in arrays[1:]]
        return [target, *others, target.with_suffix(".csv")]

    def layout(self, stage: Path, targets: Sequence[Path], shard: Shard) -> Layout:
        *arrays, table = [stage / path.name for path in targets]
        return npy_layout(dict(zip(shard.arrays, arrays, strict=True)), table, shard)


class ParquetFormat(Format):
    """One table, made from a safetensors file: the library writes it in one go."""

    copies = 2

    def check(self) -> None:
        parquet_file.library()

    def files(self, target: Path, arrays: Sequence[str]) -> list[Path]:
        return [target]

    def layout(self, stage: Path, targets: Sequence[Path], shard: Shard) -> Layout:
        return safetensors_layout(_rows(stage, targets), shard)

    def is_whole(self, stage: Path, targets: Sequence[Path]) -> bool:
        return _rows(stage, targets).is_file() or targets[0].is_file()

    def finish(self, stage: Path, targets: Sequence[Path]) -> None:
        rows = _rows(stage, targets)
        if rows.is_file():
            parquet_file.write(rows, stage / targets[0].name)
            (stage / targets[0].name).replace(targets[0])
            rows.unlink()


def _rows(stage: Path, targets: Sequence[Path]) -> Path:
    return stage / f"{targets[0].name}.safetensors"


FORMATS: dict[str, Format] = {".safetensors": SafetensorsFormat(), ".npy": NpyFormat(), ".parquet": ParquetFormat()}


def format_of(path: Path) -> Format:
    """The format that a file's name asks for.

    Raises:
        ConfigError: none does.
    """
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"{path}: latents are .safetensors, .npy or .parquet; end the name with one of them")
    if path.is_dir():
        raise ConfigError(f"{path} is a folder: give another --output")
    return FORMATS[path.suffix.lower()]
