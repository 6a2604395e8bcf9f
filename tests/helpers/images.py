"""Small image sets for the tests, made on the spot."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from unified_vae.config.data import DataConfig
from unified_vae.data.dataset import DataSets
from unified_vae.data.prepare import open_data


def png(seed: int, size: int = 8, gray: bool = False) -> bytes:
    """A PNG of random pixels."""
    shape = (size, size) if gray else (size, size, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def silent(text: str, done: int, total: int | None) -> None:
    """Progress for nobody."""


def opened(source: Path | str, cache: Path, size: int = 8, channels: int | None = None, **settings: object) -> DataSets:
    config = DataConfig.model_validate({"source": str(source), "cache_dir": str(cache), **settings})
    return open_data(config, size, channels, silent)


def names(data: DataSets) -> dict[str, set[str]]:
    return {"train": set(data.train.names), "validation": set(data.validation.names)}
