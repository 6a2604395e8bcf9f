"""The packed cache: what it gives is what was decoded, and no interruption or damage is ever trusted."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.helpers.images import opened, png, silent, write_files
from unified_vae.config.data import DataConfig
from unified_vae.core.errors import EnvironmentProblem
from unified_vae.data import cache as pack_cache
from unified_vae.data import decode, prepare
from unified_vae.data.dataset import DamagedPack, check_images, read_pack
from unified_vae.data.prepare import open_data
from unified_vae.data.sources.base import SPLITS

FILES = {f"{kind}/{number}.png": png(10 * index + number) for index, kind in enumerate("abc") for number in range(10)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_files(tmp_path / "images", FILES)


def packs(cache: Path) -> list[Path]:
    """The folders in the cache, stages included."""
    return sorted(cache.iterdir()) if cache.exists() else []


def same(first: Any, second: Any) -> bool:
    return first.fingerprint == second.fingerprint and all(
        np.array_equal(one.images, two.images) and list(one.names) == list(two.names)
        for one, two in ((first.train, second.train), (first.validation, second.validation))
    )


def test_a_warm_cache_decodes_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cold = opened(folder, tmp_path / "cache")
    monkeypatch.setattr(prepare, "scan", None)  # calling it would now raise
    warm = opened(folder, tmp_path / "cache")
    assert same(cold, warm)
    assert (cold.description, cold.notes, cold.channels) == (warm.description, warm.notes, warm.channels)


@pytest.mark.parametrize(
    ("settings", "size"),
    [({"background": "black"}, 8), ({"validation_fraction": 0.4}, 8), ({"max_images": 9}, 8), ({}, 4)],
)
def test_settings_that_change_the_pixels_make_another_pack(
    settings: dict[str, object], size: int, folder: Path, tmp_path: Path
) -> None:
    opened(folder, tmp_path / "cache")
    opened(folder, tmp_path / "cache", size, **settings)
    assert len(packs(tmp_path / "cache")) == 2


def test_the_fingerprint_follows_the_content(folder: Path, tmp_path: Path) -> None:
    before = opened(folder, tmp_path / "cache").fingerprint
    os.utime(folder / "a" / "0.png", (1, 1))
    assert opened(folder, tmp_path / "cache").fingerprint == before  # packed again, with the same content
    (folder / "a" / "0.png").rename(folder / "a" / "renamed.png")
    assert opened(folder, tmp_path / "cache").fingerprint == before
    (folder / "a" / "1.png").write_bytes(png(500))
    changed = opened(folder, tmp_path / "cache").fingerprint
    assert changed != before
    (folder / "a" / "2.png").unlink()
    assert opened(folder, tmp_path / "cache").fingerprint not in (before, changed)
    assert opened(folder, tmp_path / "cache", 4).fingerprint != opened(folder, tmp_path / "cache", 8).fingerprint


def test_the_images_of_a_split_are_read_only(folder: Path, tmp_path: Path) -> None:
    split = opened(folder, tmp_path / "cache").train
    with pytest.raises(ValueError, match="read-only"):
        split.images[0] = 0


def test_bad_images_leave_no_gaps(folder: Path, tmp_path: Path) -> None:
    for name in ("a/3.png", "b/5.png"):
        (folder / name).write_bytes(FILES[name][:-50])  # the header is good, the pixels are not
    data = opened(folder, tmp_path / "cache")
    assert {bad.name for bad in data.quarantined} == {"a/3.png", "b/5.png"}
    assert len(data.train) + len(data.validation) == 28
    for split in (data.train, data.validation):
        form = decode.PixelFormat(8, 3)
        expected = [decode.decode(FILES[name], form).pixels for name in split.names]
        np.testing.assert_array_equal(split.images, np.stack(expected))


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("name", ["train.u8", "validation.u8", "manifest.json", "manifest.sha256"])
@pytest.mark.parametrize("damage", [_flip, _cut, Path.unlink, lambda path: path.write_bytes(b"")])
def test_damage_is_noted_and_the_pack_is_made_again(name: str, damage: Any, folder: Path, tmp_path: Path) -> None:
    before = opened(folder, tmp_path / "cache")
    expected = np.array(before.train.images)
    (target,) = packs(tmp_path / "cache")
    if name == "manifest.sha256" and damage is _cut:
        pytest.skip("only the newline goes: nothing is lost")
    del before
    damage(target / name)
    after = opened(folder, tmp_path / "cache")
    assert "damaged" in after.notes[0]
    np.testing.assert_array_equal(after.train.images, expected)
    assert packs(tmp_path / "cache") == [target]


def test_every_flipped_bit_is_found_by_the_full_check(folder: Path, tmp_path: Path) -> None:
    opened(folder, tmp_path / "cache")
    (target,) = packs(tmp_path / "cache")
    whole = read_pack(target)
    assert whole is not None
    for split in SPLITS:
        check_images(whole, split)
        path = target / f"{split}.u8"
        original = path.read_bytes()
        for place in range(7, len(original), len(original) // 9):
            changed = bytearray(original)
            changed[place] ^= 16
            path.write_bytes(changed)
            with pytest.raises(DamagedPack, match="was changed"):
                check_images(whole, split)
        path.write_bytes(original)


def test_an_interrupt_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    def interrupt(text: str, done: int, total: int | None) -> None:
        if text == "packing images":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_data(DataConfig(source=str(folder), cache_dir=str(tmp_path / "cache")), 8, None, interrupt)
    assert packs(tmp_path / "cache") == []


BUILD = """
    import sys, time
    from unified_vae.config.data import DataConfig
    from unified_vae.data.prepare import open_data
    def progress(text, done, total):
        if "{slow}" and text == "packing images":
            print("packing", flush=True)
            time.sleep(60)
    data = open_data(DataConfig(source=sys.argv[1], cache_dir=sys.argv[2]), 8, None, progress)
    assert "torch" not in sys.modules
    print(data.fingerprint, data.train.images.sum(), len(data.notes))
"""


def _build(folder: Path, cache: Path, slow: str = "") -> subprocess.Popen[str]:
    script = textwrap.dedent(BUILD.format(slow=slow))
    return subprocess.Popen([sys.executable, "-c", script, str(folder), str(cache)], stdout=subprocess.PIPE, text=True)


def test_a_killed_build_is_swept_and_never_trusted(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    process = _build(folder, cache, slow="yes")
    assert process.stdout is not None
    assert process.stdout.readline() == "packing\n"
    process.send_signal(signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
    process.wait()
    process.stdout.close()
    (stage,) = packs(cache)
    assert stage.name.startswith(".stage-")
    data = opened(folder, cache)
    assert len(data.train) + len(data.validation) == 30
    assert stage not in packs(cache) and len(packs(cache)) == 1


def test_two_processes_that_build_at_once_both_end_right(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    builders = [_build(folder, cache) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in builders]
    assert [process.returncode for process in builders] == [0, 0]
    data = opened(folder, cache)
    assert outputs == [f"{data.fingerprint} {data.train.images.sum()} {len(data.notes)}\n"] * 2
    assert len(packs(cache)) == 1


def test_the_second_of_two_builders_keeps_the_first_ones_pack(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened(folder, tmp_path / "cache")
    (target,) = packs(tmp_path / "cache")
    inode = (target / "train.u8").stat().st_ino
    monkeypatch.setattr("unified_vae.data.prepare.read_pack", lambda folder: None)  # as if it were not there yet
    assert same(first, opened(folder, tmp_path / "cache"))
    assert (target / "train.u8").stat().st_ino == inode and packs(tmp_path / "cache") == [target]


def test_stages_of_living_processes_and_of_other_machines_stay(tmp_path: Path) -> None:
    local = pack_cache._new_stage(tmp_path)
    foreign = tmp_path / ".stage-otherhost-1-abc"
    old = tmp_path / ".stage-otherhost-2-abc"
    for stage in (foreign, old):
        stage.mkdir()
    os.utime(old, (time.time() - 10**6,) * 2)
    pack_cache.sweep(tmp_path)
    assert packs(tmp_path) == sorted([local, foreign])


def test_process_ids_of_another_container_mean_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "readlink", lambda _: Path("pid:[1]"))
    theirs = pack_cache._new_stage(tmp_path)
    monkeypatch.setattr(psutil, "pid_exists", lambda number: False)
    monkeypatch.setattr(Path, "readlink", lambda _: Path("pid:[2]"))
    pack_cache.sweep(tmp_path)
    assert packs(tmp_path) == [theirs]
    monkeypatch.setattr(Path, "readlink", lambda _: Path("pid:[1]"))
    pack_cache.sweep(tmp_path)
    assert packs(tmp_path) == []


def test_a_disk_without_room_is_refused_before_decoding(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    monkeypatch.setattr(prepare, "decode", None)
    with pytest.raises(EnvironmentProblem, match=r"need .* are free.*cache_dir"):
        opened(folder, tmp_path / "cache")
    assert packs(tmp_path / "cache") == []


def test_a_disk_that_fills_up_while_packing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EnvironmentProblem, match=r"disk of .* is full"):
        opened(folder, tmp_path / "cache")
    assert packs(tmp_path / "cache") == []


def test_a_cache_that_cannot_be_written_says_what_to_do(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EnvironmentProblem, match=r"cannot be written.*UNIFIED_VAE_CACHE"):
        opened(folder, tmp_path / "file" / "cache")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UNIFIED_VAE_CACHE", str(tmp_path / "variable"))
    assert pack_cache.cache_root(str(tmp_path / "configured")) == tmp_path / "configured"
    assert pack_cache.cache_root(None) == tmp_path / "variable"
    monkeypatch.delenv("UNIFIED_VAE_CACHE")
    assert pack_cache.cache_root(None).name in ("unified-vae", "Cache")


def test_gray_sets_have_one_channel_and_mixed_ones_three(tmp_path: Path) -> None:
    gray = {f"{n}.png": png(n, gray=True) for n in range(6)}
    one = opened(write_files(tmp_path / "gray", gray), tmp_path / "cache")
    three = opened(tmp_path / "gray", tmp_path / "cache", channels=3)
    mixed = opened(write_files(tmp_path / "mixed", gray | {"c.png": png(50)}), tmp_path / "cache")
    assert (one.channels, three.channels, mixed.channels) == (1, 3, 3)
    np.testing.assert_array_equal(three.train.images, np.repeat(one.train.images, 3, axis=3))
    assert opened(tmp_path / "mixed", tmp_path / "cache", channels=1).train.images.shape[-1] == 1


def test_enlarged_images_are_noted(folder: Path, tmp_path: Path) -> None:
    data = opened(folder, tmp_path / "cache", 16)
    assert any("30 images are smaller than 16" in note for note in data.notes)


def test_the_built_in_set(tmp_path: Path) -> None:
    from unified_vae.data.cartoon.faces import ATTRIBUTE_NAMES, draw_faces

    data = opened("builtin", tmp_path / "cache", 16, max_images=70)
    assert (len(data.train), len(data.validation), data.channels) == (70, 64, 3)
    np.testing.assert_array_equal(data.train.images, draw_faces(0, range(70), 16))
    np.testing.assert_array_equal(data.validation.images, draw_faces(0, range(20_000, 20_064), 16))
    assert data.train.label_names == ATTRIBUTE_NAMES
    assert "built-in" in data.description and not data.quarantined
    smaller = opened("builtin", tmp_path / "cache", 16, max_images=9)
    np.testing.assert_array_equal(smaller.train.images, data.train.images[:9])
    assert opened("builtin", tmp_path / "cache", 16, channels=1, max_images=9).train.images.shape == (9, 16, 16, 1)


def test_faces_drawn_by_processes_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = opened("builtin", tmp_path / "one", 16, max_images=70)
    monkeypatch.setattr("unified_vae.data.cartoon.builtin._PROCESSES_FROM", 1)
    monkeypatch.setattr("unified_vae.data.cartoon.builtin.cpu_count", lambda: 2)
    assert same(alone, opened("builtin", tmp_path / "two", 16, max_images=70))


def test_progress_is_reported_to_the_end(folder: Path, tmp_path: Path) -> None:
    events: list[tuple[str, int, int | None]] = []
    config = DataConfig(source=str(folder), cache_dir=str(tmp_path / "cache"))
    open_data(config, 8, None, lambda *event: events.append(event))
    assert ("scanning images", 30, 30) in events and ("packing images", 30, 30) in events
    open_data(config, 8, None, silent)
