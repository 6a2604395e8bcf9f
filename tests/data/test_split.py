"""The split follows from content alone: nothing that happens to the other files moves an image across."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.images import names, opened, png, write_files
from unified_vae.core.errors import DataError
from unified_vae.data.prepare import exact_split, fill_empty_split, split_limits, split_of, subset_order

FILES = {f"{number}.png": png(number) for number in range(40)}


def test_adding_and_renaming_move_nothing(tmp_path: Path) -> None:
    files = {f"{number}.png": png(number) for number in range(330)}  # fewer are split exactly, so that a border moves
    before = names(opened(write_files(tmp_path / "a", files), tmp_path / "cache", validation_fraction=0.3))
    more = {f"renamed {name}": data for name, data in files.items()} | {f"new/{n}.png": png(999 + n) for n in range(20)}
    after = names(opened(write_files(tmp_path / "b", more), tmp_path / "cache", validation_fraction=0.3))
    for split, members in before.items():
        assert {f"renamed {name}" for name in members} <= after[split]


def test_copies_land_in_the_same_split(tmp_path: Path) -> None:
    copies = FILES | {f"copy of {name}": data for name, data in FILES.items()}
    splits = names(opened(write_files(tmp_path / "a", copies), tmp_path / "cache", validation_fraction=0.3))
    for name in FILES:
        assert (name in splits["train"]) == (f"copy of {name}" in splits["train"])


def test_images_in_both_parts_of_an_own_split_are_noted(tmp_path: Path) -> None:
    files = {"train/a.png": png(1), "train/b.png": png(2), "val/c.png": png(1)}
    data = opened(write_files(tmp_path / "a", files), tmp_path / "cache")
    assert any("both training and validation" in note for note in data.notes)


def test_the_fraction_is_kept() -> None:
    contents = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(20_000)]
    part = sum(split_of(content, 0.1) == "validation" for content in contents) / len(contents)
    assert part == pytest.approx(0.1, abs=0.01)  # five standard deviations


@pytest.mark.parametrize("count", [2, 3, 4, 5])
@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_tiny_sets_have_both_splits(count: int, fraction: float, tmp_path: Path) -> None:
    folder = write_files(tmp_path / "a", {f"{number}.png": png(number) for number in range(count)})
    data = opened(folder, tmp_path / "cache", validation_fraction=fraction)
    assert len(data.train) >= 1 and len(data.validation) >= 1
    assert len(data.train) + len(data.validation) == count


@pytest.mark.parametrize(("count", "kept"), [(8, 2), (31, 7), (32, 16), (50, 16), (200, 20), (320, 32)])
def test_small_sets_are_split_exactly(count: int, kept: int) -> None:
    contents = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(count)]
    splits = exact_split(contents, 0.1)
    assert splits.count("validation") == kept
    order = sorted(contents)
    assert {c for c, split in zip(contents, splits, strict=True) if split == "validation"} == set(order[:kept])
    copies = exact_split(contents * 2, 0.1)
    assert copies[:count] == copies[count:]


@given(st.lists(st.sampled_from("abcd"), min_size=2, max_size=8), st.sampled_from(["train", "validation"]))
def test_the_empty_split_gets_one_content_whole(contents: list[str], full: str) -> None:
    splits, note = fill_empty_split([full] * len(contents), contents)  # type: ignore[list-item]
    assert set(splits) == {"train", "validation"} and note
    if len(set(contents)) > 1:
        assert len(set(zip(contents, splits, strict=True))) == len(set(contents))


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images_give_advice(count: int, tmp_path: Path) -> None:
    folder = write_files(tmp_path / "a", {f"{number}.png": png(number) for number in range(count)} | {"a.txt": b""})
    with pytest.raises(DataError, match=r"usable image.*--data"):
        opened(folder, tmp_path / "cache")


def test_a_split_that_is_damaged_as_a_whole_gets_an_image(tmp_path: Path) -> None:
    files = {f"train/{n}.png": png(n) for n in range(12)} | {"val/x.png": png(50)[:-60]}
    data = opened(write_files(tmp_path / "a", files), tmp_path / "cache")
    assert (len(data.train), len(data.validation)) == (11, 1)
    assert [bad.name for bad in data.quarantined] == ["val/x.png"]


def test_too_many_bad_files_stop_the_run_and_are_named(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "a", FILES | {f"bad {n}.png": b"no image" for n in range(10)})
    with pytest.raises(DataError, match=r"10 files.*20%.*bad 0.png: not an image"):
        opened(folder, tmp_path / "cache")
    assert len(opened(folder, tmp_path / "cache", max_bad_fraction=0.25).quarantined) == 10
    with pytest.raises(DataError, match="10 files"):  # also where the pack is in the cache by now
        opened(folder, tmp_path / "cache")


def test_a_subset_is_part_of_larger_ones_and_only_it_is_opened(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "a", {f"train/{n}.png": png(n) for n in range(60)} | {"val/v.png": png(99)})
    chosen = [set(opened(folder, tmp_path / "cache", max_images=size).train.names) for size in (5, 20, 60)]
    assert [len(part) for part in chosen] == [5, 20, 60]
    assert chosen[0] < chosen[1] < chosen[2]
    unwanted = next(iter(chosen[2] - chosen[0]))
    (folder / unwanted).write_bytes(b"damaged")
    again = opened(folder, tmp_path / "cache", max_images=5)
    assert set(again.train.names) == chosen[0] and not again.quarantined


def test_a_subset_of_a_hash_split_keeps_the_splits(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "a", {f"{n}.png": png(n) for n in range(400)})
    all_of_it = names(opened(folder, tmp_path / "cache", validation_fraction=0.4))
    part = names(opened(folder, tmp_path / "cache", validation_fraction=0.4, max_images=10))
    assert (len(part["train"]), len(part["validation"])) == (10, 64)
    assert part["train"] < all_of_it["train"] and part["validation"] < all_of_it["validation"]
    assert sorted(subset_order([str(n) for n in range(400)])) == list(range(400))


def test_the_limits_of_splits_follow_the_subset() -> None:
    assert split_limits(None) == {"train": None, "validation": None}
    assert split_limits(100) == {"train": 100, "validation": 64}
    assert split_limits(5000) == {"train": 5000, "validation": 500}
