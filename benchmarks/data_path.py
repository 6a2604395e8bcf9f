"""The data path: packed images against decoding files in workers, and what it costs as the set grows.

1. Images a second to host memory, from the pack as the trainer reads it, against torch's DataLoader whose workers
   decode JPEGs of the same pictures at the same size (from the second epoch on: workers up, files in the page cache).
2. Time an image and memory of the process from 1,000 to 1,000,000 synthetic images. The pack is mapped, so that pages
   of it are the system's to keep or to drop; what counts is what the process holds beside them.
The two of a pair take turns; medians of the rounds.
"""

from __future__ import annotations

import argparse
import io
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

from runs import images
from script import parser, save, settle, source, start, table
from unified_vae.data.batches import train_batches
from unified_vae.data.dataset import PackedSplit

NAME = "data_path"
TARGET_SPEED, TARGET_RATIO = 20_000, 50
GROWTH_SIZE = 32  # pixels: a million of them are 3 GB
NEVER = 10**9


def read_options() -> argparse.Namespace:
    options = parser(NAME, __doc__)
    options.add_argument("--images", dest="name", default="faces128", help="a set of the folder")
    options.add_argument("--image-size", type=int, default=128)
    options.add_argument("--batch-size", type=int, default=64)
    options.add_argument("--workers", type=int, default=2, help="of the DataLoader that decodes")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--counts", nargs="+", type=int, default=[1_000, 10_000, 100_000, 1_000_000])
    given = settle(options.parse_args())
    if given.quick:
        given.rounds, given.counts, given.workers = 1, [100, 1_000], 1
    return given


class Jpegs(torch.utils.data.Dataset[torch.Tensor]):
    """The same pictures as JPEG files in memory, decoded on request as a usual data set does."""

    def __init__(self, split: PackedSplit) -> None:
        self.files = [_jpeg(pixels) for pixels in split.images]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        picture = Image.open(io.BytesIO(self.files[index])).convert("RGB")
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def _jpeg(pixels: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def packed_epochs(split: PackedSplit, batch_size: int) -> Iterator[float]:
    """Images a second of one epoch after the other, from the pack."""
    batches = train_batches(split, seed=0, start_step=0, end_step=NEVER, batch_size=batch_size)
    return _epochs(batches, len(split), batch_size)


def decoding_epochs(split: PackedSplit, batch_size: int, workers: int) -> Iterator[float]:
    """The same from files, in worker processes that stay."""
    files = torch.utils.data.DataLoader(
        Jpegs(split), batch_size, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )
    return _epochs(itertools.chain.from_iterable(itertools.repeat(files)), len(split), batch_size)


def _epochs(batches: Iterator[Any], count: int, batch_size: int) -> Iterator[float]:
    steps = count // batch_size
    while True:
        begun = time.perf_counter()
        for _ in range(steps):
            next(batches)
        yield steps * batch_size / (time.perf_counter() - begun)


def against_decoding(options: argparse.Namespace) -> dict[str, Any]:
    split = images(source(options, options.name), options.image_size).train
    packed = packed_epochs(split, options.batch_size)
    decoding = decoding_epochs(split, options.batch_size, options.workers)
    next(packed), next(decoding)
    pairs = [(next(packed), next(decoding)) for _ in range(options.rounds)]
    fast, slow = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {
        "image_size": options.image_size,
        "images": len(split),
        "packed_images_per_second": round(fast),
        "decoding_images_per_second": round(slow),
        "ratio": round(statistics.median(one / other for one, other in pairs), 1),
        "rounds": [[round(value) for value in pair] for pair in pairs],
        "targets": {"packed_images_per_second": TARGET_SPEED, "ratio": TARGET_RATIO},
    }


def growth(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """For each number of images: microseconds an image, in turns, and the memory that the process holds by itself."""
    takers, rows = {}, {count: [] for count in options.counts}
    for count in options.counts:
        takers[count] = _taker(_synthetic(folder / f"{count}.u8", count), options.batch_size)
    held = {}
    for _ in range(options.rounds):
        for count, take in takers.items():
            before = _own_memory()
            rows[count].append(take())
            held[count] = max(held.get(count, 0), _own_memory() - before)
    return [
        {"images": count, "microseconds_an_image": round(1e6 * statistics.median(rows[count]), 3),
         "own_memory_mib": round(held[count] / 2**20, 1)}
        for count in options.counts
    ]  # fmt: skip


def _synthetic(path: Path, count: int) -> PackedSplit:
    """Random pixels, written once."""
    shape = (count, GROWTH_SIZE, GROWTH_SIZE, 3)
    block = np.random.default_rng(0).integers(0, 256, (min(count, 10_000), *shape[1:]), dtype=np.uint8)
    with path.open("wb") as file:
        for _ in range(count // len(block)):
            file.write(block.tobytes())
    return PackedSplit(path, shape, [""] * count)


def _taker(split: PackedSplit, batch_size: int, steps: int = 200) -> Callable[[], float]:
    batches = train_batches(split, seed=0, start_step=0, end_step=NEVER, batch_size=batch_size)
    next(batches)

    def take() -> float:
        begun = time.perf_counter()
        for _ in range(steps):
            next(batches)
        return (time.perf_counter() - begun) / (steps * batch_size)

    return take


def _own_memory() -> int:
    """Bytes that are this process's alone: without pages of mapped files."""
    info = psutil.Process().memory_info()
    return int(info.rss - getattr(info, "shared", 0))


def main() -> None:
    options = read_options()
    compared = against_decoding(options)
    table(
        ["images a second", "packed", "decoding", "ratio"],
        [
            [
                f"{options.image_size} px",
                *(compared[f"{k}_images_per_second"] for k in ("packed", "decoding")),
                compared["ratio"],
            ]
        ],
    )
    with tempfile.TemporaryDirectory(dir=options.work_dir) as folder:
        grown = growth(options, Path(folder))
    table(["images", "us an image", "own memory MiB"], [list(row.values()) for row in grown])
    save(options, NAME, {"against_decoding": compared, "growth": grown})


if __name__ == "__main__":
    start(main)
