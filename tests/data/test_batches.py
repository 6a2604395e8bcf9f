"""The order of images: a pure function of (seed, step), whatever the ranks or the restarts."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unified_vae.data import batches as data_batches
from unified_vae.data.batches import (
    READ_AHEAD,
    TrainBatch,
    batch_indices,
    cache_on_device,
    fits_on_device,
    rank_slice,
    read_ahead,
    steps_per_epoch,
    train_batches,
    validation_batches,
)
from unified_vae.data.dataset import PackedSplit

COUNT = 11


@pytest.fixture
def split(tmp_path: Path) -> PackedSplit:
    """Eleven images, each filled with its own number."""
    pixels = np.arange(COUNT, dtype=np.uint8).repeat(4 * 4 * 3).reshape(COUNT, 4, 4, 3)
    pixels[..., 1] += 100  # so that channels cannot be mistaken
    path = tmp_path / "train.u8"
    pixels.tofile(path)
    return PackedSplit(path, pixels.shape, [str(n) for n in range(COUNT)])


def stream(split: PackedSplit, start: int, end: int, **settings: object) -> list[TrainBatch]:
    options = {"seed": 3, "batch_size": 4} | settings
    return list(train_batches(split, start_step=start, end_step=end, **options))


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 5), st.integers(0, 2**63 - 1))
def test_every_image_is_in_every_epoch(count: int, batch: int, epoch: int, seed: int) -> None:
    steps = steps_per_epoch(count, batch)
    seen = np.concatenate([batch_indices(seed, epoch * steps + step, count, batch) for step in range(steps)])
    assert len(seen) == steps * batch
    times = np.bincount(seen, minlength=count)
    assert times.min() >= 1 and times.max() - times.min() <= 1


def test_epochs_and_seeds_differ() -> None:
    orders = [tuple(batch_indices(seed, epoch, 64, 64)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4


def test_batches_hold_the_images_they_name(split: PackedSplit) -> None:
    for step, batch in enumerate(stream(split, 0, 7)):
        assert batch.epoch == step // 3
        assert batch.images.shape == (4, 3, 4, 4) and batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        expected = torch.from_numpy(batch.indices)[:, None, None].expand(4, 4, 4)
        assert torch.equal(batch.images[:, 0].long(), expected)
        assert torch.equal(batch.images[:, 1].long(), expected + 100)


def test_a_stream_may_be_taken_up_at_any_step(split: PackedSplit) -> None:
    whole = stream(split, 0, 9)
    for start in range(9):
        for batch, expected in zip(stream(split, start, 9), whole[start:], strict=True):
            np.testing.assert_array_equal(batch.indices, expected.indices)
            assert torch.equal(batch.images, expected.images) and batch.epoch == expected.epoch


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_the_slices_of_the_ranks_make_up_the_global_batch(split: PackedSplit, world_size: int) -> None:
    slices = [stream(split, 0, 6, rank=rank, world_size=world_size) for rank in range(world_size)]
    for parts, expected in zip(zip(*slices, strict=True), stream(split, 0, 6), strict=True):
        np.testing.assert_array_equal(np.concatenate([part.indices for part in parts]), expected.indices)
        assert torch.equal(torch.cat([part.images for part in parts]), expected.images)


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 4), (2, 3), (4, 100)])
def test_validation_sees_every_image_once(split: PackedSplit, world_size: int, batch_size: int) -> None:
    batches = [
        batch
        for rank in range(world_size)
        for batch in validation_batches(split, batch_size=batch_size, rank=rank, world_size=world_size)
    ]
    assert torch.cat(batches)[:, 0, 0, 0].tolist() == list(range(COUNT))
    assert max(map(len, batches)) <= batch_size


@given(st.integers(0, 100), st.integers(1, 9))
def test_slices_are_contiguous_and_even(count: int, world_size: int) -> None:
    parts = [range(count)[rank_slice(count, rank, world_size)] for rank in range(world_size)]
    assert [number for part in parts for number in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("chunk", [1, 2**20])
def test_images_cached_on_the_device_give_the_same_batches(
    split: PackedSplit, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_batches, "COPY_BYTES", chunk)
    cached = cache_on_device(split, torch.device("cpu"))
    for world_size, rank in ((1, 0), (2, 1)):
        usual = stream(split, 2, 9, world_size=world_size, rank=rank)
        there = stream(split, 2, 9, world_size=world_size, rank=rank, cached_images=cached)
        for a, b in zip(usual, there, strict=True):
            assert torch.equal(a.images, b.images) and a.epoch == b.epoch
            assert np.array_equal(a.indices, b.indices)
            assert b.images.stride() == a.images.stride()


def test_images_are_cached_where_a_quarter_of_memory_holds_them(split: PackedSplit) -> None:
    size = COUNT * 4 * 4 * 3
    assert fits_on_device(split, 4 * size)
    assert not fits_on_device(split, 4 * size - 1)
    assert not fits_on_device(split, 0)


def test_reading_ahead_is_by_two_batches_and_changes_nothing() -> None:
    begun: list[int] = []
    news = threading.Semaphore(0)

    def read(step: int) -> torch.Tensor:
        begun.append(step)
        news.release()
        return torch.tensor(step)

    for taken, value in enumerate(read_ahead(read, range(3, 9)), start=1):
        assert value.item() == 2 + taken
        while len(begun) < min(taken + READ_AHEAD, 6):
            assert news.acquire(timeout=30), f"nothing is read ahead of batch {taken}"
        assert len(begun) == min(taken + READ_AHEAD, 6)
    assert begun == list(range(3, 9))
    assert list(read_ahead(read, range(0))) == []


def test_pinned_batches_are_the_others(split: PackedSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    for batch, expected in zip(stream(split, 2, 9, pin_memory=True), stream(split, 2, 9), strict=True):
        np.testing.assert_array_equal(batch.indices, expected.indices)
        assert torch.equal(batch.images, expected.images) and batch.epoch == expected.epoch
    assert len(pinned) == 7


def test_errors_come_in_turn_and_a_closed_stream_stops_reading() -> None:
    begun: list[int] = []

    def read(step: int) -> torch.Tensor:
        begun.append(step)
        if step == 1:
            raise OSError("the disk is gone")
        return torch.tensor(step)

    stream = read_ahead(read, range(10))
    assert next(stream).item() == 0
    with pytest.raises(OSError, match="gone"):
        next(stream)
    stream = read_ahead(read, range(2, 10))
    next(stream)
    stream.close()
    assert max(begun) <= 2 + READ_AHEAD
