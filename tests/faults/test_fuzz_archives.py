"""Damaged archives and arrays by the thousand: used in part or refused with a sentence, soon."""

from __future__ import annotations

import time
import zipfile
from pathlib import Path
from random import Random

import numpy as np
import pytest

from tests.faults.fault_rows import report
from tests.faults.mutations import damaged
from tests.helpers.archives import tarred, zipped
from tests.helpers.images import opened, png
from unified_vae.core.errors import UserError

SEED, FEW, MANY = 1, 40, 20_000
SLOWEST_SECONDS = 20.0
PICTURES = {f"{n}.png": png(n) for n in range(20)}
IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)


def _sound(folder: Path) -> dict[str, bytes]:
    arrays = {"images": IMAGES, "labels": np.arange(12)}
    np.save(folder / "a.npy", IMAGES)
    np.savez(folder / "a.npz", **arrays)
    np.savez_compressed(folder / "b.npz", **arrays)
    paths = [
        zipped(folder / "a.zip", PICTURES),
        zipped(folder / "b.zip", PICTURES, zipfile.ZIP_STORED),
        tarred(folder / "a.tar", PICTURES),
        tarred(folder / "a.tar.gz", PICTURES, "w:gz"),
        tarred(folder / "b.tgz", {f"{'long' * 40}/{name}": data for name, data in PICTURES.items()}, "w:gz"),
    ]
    return {path.name: path.read_bytes() for path in [*paths, *folder.glob("*.np?")]}


def _damaged_anywhere(data: bytes, rng: Random) -> bytes:
    """Half of the time near the end, where a zip has its directory."""
    return damaged(data, rng) if rng.random() < 0.5 else damaged(data[::-1], rng)[::-1]


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.long)])
def test_damaged_archives_are_used_or_refused(count: int, tmp_path: Path) -> None:
    (tmp_path / "sound").mkdir()
    sound = _sound(tmp_path / "sound")
    refused, slowest = 0, 0.0
    for number in range(count):
        rng = Random(f"{SEED} {number}")
        name = rng.choice(sorted(sound))
        path = tmp_path / name
        path.write_bytes(_damaged_anywhere(sound[name], rng))
        begun = time.process_time()
        try:
            data = opened(path, tmp_path / f"cache {number}", max_bad_fraction=1.0)
            assert len(data.train) and len(data.validation)
        except UserError as error:
            refused += 1
            assert str(error)
        except Exception as error:
            raise AssertionError(f"file {number}, {name}: {error!r}") from error
        slowest = max(slowest, time.process_time() - begun)
    assert refused > count // 5 and slowest < SLOWEST_SECONDS
    report(
        fault=f"{count:,} mutated archives and arrays (zip, tar, tar.gz, npy, npz)",
        target="0 tracebacks, 0 hangs",
        result=f"0; {count - refused:,} used in part, {refused:,} refused, slowest {slowest:.1f} s",
    )
