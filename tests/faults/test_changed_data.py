"""Images that vanish or change: while they are packed, while a run goes on, and between its starts."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.faults.fault_rows import report
from tests.helpers.images import names, opened, png, write_files
from tests.helpers.runs import Recorder, merged, outcome, request, train
from unified_vae.config.data import DataConfig
from unified_vae.core.errors import DataError
from unified_vae.data.decode import PixelFormat, decode
from unified_vae.data.prepare import open_data

COUNT, SIZE = 44, 16
FILES = {f"{'ab'[number % 2]}/{number // 2:02d}.png": png(number, SIZE) for number in range(COUNT)}
OTHER = png(999, SIZE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_files(tmp_path / "images", FILES)


def test_what_changes_while_it_is_packed_is_left_out_and_named(folder: Path, tmp_path: Path) -> None:
    config = DataConfig(source=str(folder), cache_dir=str(tmp_path / "cache"))

    def spoil(what: str, done: int, total: int | None) -> None:
        if what == "scanning images" and done == total:
            (folder / "a" / "03.png").unlink()
            (folder / "a" / "04.png").write_bytes(OTHER)

    data = open_data(config, SIZE, None, spoil)
    reasons = {bad.name: bad.reason for bad in data.quarantined}
    assert reasons.keys() == {"a/03.png", "a/04.png"}
    assert "No such file" in reasons["a/03.png"] and "changed while" in reasons["a/04.png"]
    for split in (data.train, data.validation):
        wanted = [decode(FILES[name], PixelFormat(SIZE, 3)).pixels for name in split.names]
        np.testing.assert_array_equal(split.images, np.stack(wanted))
    after = opened(folder, tmp_path / "cache", SIZE)  # the changed one is an image like any other now
    assert not after.quarantined and len(after.train) + len(after.validation) == COUNT - 1


@pytest.fixture(scope="module")
def covered():
    """What was gone through, for the table."""
    done: list[str] = []
    yield done
    report(
        fault="images added, removed, edited between two starts",
        target="refused with the counts, unless accepted",
        result=f"{len(done)} of {len(CHANGES)}",
    )


class At(Recorder):
    """Does something once, after a step."""

    def __init__(self, step: int, what: Callable[[], object]) -> None:
        super().__init__()
        self.step, self.what = step, what

    def step_done(self, event) -> None:
        if event.step == self.step:
            self.what()


def _short(epochs: int, **data: object) -> dict:
    return {"training": {"epochs": epochs}, "data": data}


def test_a_run_does_not_need_its_images_again(folder: Path, tmp_path: Path) -> None:
    """They are packed at the start; what becomes of the files then changes nothing until the next start."""
    assert train(request(tmp_path / "undisturbed", folder, _short(2)), [Recorder()]).exit_code == 0
    moved = At(3, lambda: folder.rename(tmp_path / "elsewhere"))
    assert train(request(tmp_path / "run", folder, _short(2)), [moved]).exit_code == 0
    assert outcome(tmp_path / "run") == outcome(tmp_path / "undisturbed")
    with pytest.raises(DataError, match="no file or folder"):
        train(request(tmp_path / "run", folder, _short(3)), [Recorder()])


def _touch_all(folder: Path) -> None:
    for name in FILES:
        os.utime(folder / name, (1, 1))


def _shuffle(folder: Path) -> None:
    """Other names for the same images, in another order."""
    for number, name in enumerate(reversed(FILES)):
        (folder / name).rename(folder / f"{number}.png")


def _edit(folder: Path) -> None:
    (folder / "a" / "01.png").write_bytes(OTHER)


def _all_three(folder: Path) -> None:
    _edit(folder)
    (folder / "b" / "02.png").unlink()
    for number in range(2):
        (folder / f"new {number}.png").write_bytes(png(2000 + number, SIZE))


CHANGES = {
    "added": (lambda folder: (folder / "new.png").write_bytes(OTHER), "1 added."),
    "removed": (lambda folder: (folder / "b" / "05.png").unlink(), "1 removed."),
    "edited": (_edit, "1 edited."),
    "all three": (_all_three, "2 added, 1 removed, 1 edited."),
}


@pytest.mark.figure
@pytest.mark.parametrize("change", CHANGES)
def test_other_images_are_refused_with_the_counts_or_accepted(
    change: str, folder: Path, covered, tmp_path: Path
) -> None:
    make, words = CHANGES[change]
    assert train(request(tmp_path / "run", folder, _short(1)), [Recorder()]).exit_code == 0
    make(folder)
    before = outcome(tmp_path / "run")
    with pytest.raises(DataError, match="allow_changed_data") as caught:
        train(request(tmp_path / "run", folder, _short(2)), [Recorder()])
    assert f"the images changed since the checkpoint: {words}" in str(caught.value)
    assert outcome(tmp_path / "run") == before
    seen = Recorder()
    assert train(request(tmp_path / "run", folder, _short(2, allow_changed_data=True)), [seen]).exit_code == 0
    differences = [entry for entry in seen.started[0].differences if "data" in entry.path]
    assert any(words.rstrip(".") in str(entry.now) for entry in differences)
    assert train(request(tmp_path / "run", folder, _short(3)), [Recorder()]).exit_code == 0  # accepted once and for all
    covered.append(change)


@pytest.mark.figure
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGTERM")
@pytest.mark.parametrize(("make", "done"), [(_touch_all, "touched"), (_shuffle, "renamed into another order")])
def test_the_same_images_under_other_names_or_times_go_on(
    make: Callable[[Path], None], done: str, folder: Path, tmp_path: Path
) -> None:
    """The order of images is one of their contents: to the bits of the run whose folder nobody touched."""
    assert train(request(tmp_path / "undisturbed", folder, _short(2)), [Recorder()]).exit_code == 0
    stop = At(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert train(request(tmp_path / "run", folder, _short(2)), [stop]).exit_code == 143
    make(folder)
    shutil.rmtree(tmp_path / "cache")
    assert train(request(tmp_path / "run", folder, _short(2)), [Recorder()]).exit_code == 0
    assert outcome(tmp_path / "run") == outcome(tmp_path / "undisturbed")
    assert names(opened(folder, tmp_path / "cache", SIZE))["train"]
    report(fault=f"all images {done} between two starts", target="no change: bit-identical end", result="bit-identical")


def test_other_names_that_choose_other_images_are_refused(folder: Path, tmp_path: Path) -> None:
    """A part of a set is chosen by name, so that it stays when images come: new names may choose another part."""
    part = _short(1, max_images=20)
    assert train(request(tmp_path / "run", folder, part), [Recorder()]).exit_code == 0
    before = outcome(tmp_path / "run")
    _shuffle(folder)
    with pytest.raises(
        DataError, match=r"the images changed since the checkpoint: \d+ added, \d+ removed.*allow_changed_data"
    ):
        train(request(tmp_path / "run", folder, merged(part, {"training": {"epochs": 2}})), [Recorder()])
    assert outcome(tmp_path / "run") == before


def test_the_counts_know_copies_and_moves(tmp_path: Path) -> None:
    """A copy too many is one image added; an image that changed sides is told as such."""
    split = {f"train/{n}.png": png(n) for n in range(6)} | {f"val/{n}.png": png(10 + n) for n in range(3)}
    first = opened(write_files(tmp_path / "first", split), tmp_path / "cache").inventory
    first.write(tmp_path)
    write_files(tmp_path / "second", split | {"train/copy.png": png(0)})
    (tmp_path / "second" / "train" / "1.png").rename(tmp_path / "second" / "val" / "moved.png")
    second = opened(tmp_path / "second", tmp_path / "cache").inventory
    summary = second.changes_since(tmp_path, first.fingerprint)
    assert summary == "1 added, 1 moved between training and validation"
    black = opened(tmp_path / "first", tmp_path / "cache", background="black").inventory
    assert black.changes_since(tmp_path, first.fingerprint).startswith("the same images in another form")
    assert second.changes_since(tmp_path / "nowhere", first.fingerprint) == ""
