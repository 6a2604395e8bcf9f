"""Every kind of bad image among a thousand good ones: the run completes, and each bad one is named, none used."""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tests.helpers.image_zoo as zoo
from tests.faults.fault_rows import report
from tests.helpers.disks import obey_permissions
from tests.helpers.forks import in_a_fork
from tests.helpers.images import opened, png, write_files
from tests.helpers.runs import Recorder, request, train
from unified_vae.data.decode import quiet_pillow, read_header
from unified_vae.data.sources.base import BadImage

BAD, ODD = zoo.bad_files(), zoo.odd_entries()
GOOD = zoo.good_files()
GOOD["folder.png/inside.png"] = GOOD["rgb.png"]  # a folder named like an image is a folder
PLAIN = 1000


@pytest.fixture(scope="module")
def crowd(tmp_path_factory) -> Path:
    """A thousand sound pictures of 16 px, and the whole zoo."""
    folder = tmp_path_factory.mktemp("crowd") / "images"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (PLAIN, zoo.SIZE, zoo.SIZE, 3), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).save(folder / f"plain {number:04d}.png", compress_level=1)
    write_files(folder, {name: good.data for name, good in GOOD.items()})
    write_files(folder, {name: data for name, (data, _) in BAD.items()})
    for name, (make, _) in ODD.items():
        make(folder / name)
    (folder / "hollow.png").mkdir()  # no file, so neither used nor named
    return folder


@pytest.mark.figure
def test_a_run_on_them_completes_and_names_every_bad_one(crowd, tmp_path) -> None:
    change = {"data": {"background": "#ff0080"}, "training": {"max_steps": 3, "batch_size": 64}}
    seen = Recorder()
    ended = train(request(tmp_path / "run", crowd, change), [seen])
    assert (ended.outcome, ended.exit_code) == ("finished", 0)
    rows = [line.split("\t") for line in (tmp_path / "run" / "quarantine.txt").read_text("utf-8").splitlines()]
    reasons = {name: word for name, (_, word) in (BAD | ODD).items()}
    assert sorted(name for name, _ in rows) == sorted(reasons)
    for name, reason in rows:
        assert reasons[name] in reason, f"{name}: {reason}"
    assert any("quarantine.txt" in notice for notice in seen.notices)
    assert any(f"{len(rows)} files could not be used" in notice for notice in seen.notices)
    report(
        fault=f"{len(rows)} kinds of bad image among {PLAIN + len(GOOD):,} good ones",
        target="the run completes; all named with their reason; none used in silence",
        result=f"completes; {len(rows)} of {len(rows)} named; {len(GOOD)} odd kinds used to the exact pixel",
    )


def test_what_is_used_of_them_is_exact(crowd, tmp_path) -> None:
    data = opened(crowd, tmp_path / "cache", zoo.SIZE, background="#ff0080")
    used = dict(zip(data.train.names, data.train.images, strict=True))
    used |= dict(zip(data.validation.names, data.validation.images, strict=True))
    assert used.keys() == GOOD.keys() | {f"plain {number:04d}.png" for number in range(PLAIN)}
    for name, good in GOOD.items():
        np.testing.assert_array_equal(used[name], good.pixels, err_msg=name)
    for name in sorted(used.keys() - GOOD.keys())[::50]:
        np.testing.assert_array_equal(used[name], np.asarray(Image.open(crowd / name)), err_msg=name)


@pytest.mark.figure
@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
@pytest.mark.parametrize("name", ["bomb_header.png", "bomb_real.png", "bomb_below_the_limit.png"])
def test_a_bomb_costs_neither_memory_nor_time(name: str) -> None:
    data, _ = BAD[name]

    def refuse() -> tuple[float, int]:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begun = time.process_time()
        with quiet_pillow(), pytest.raises(BadImage, match=r"megapixels|bomb"):
            read_header(data)
        return time.process_time() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

    seconds, kibibytes = in_a_fork(refuse)
    assert seconds < 0.1 and kibibytes < 100 * 1024
    report(
        fault=f"decompression bomb, {name} of {len(data):,} bytes",
        target="below 100 MB and 0.1 s",
        result=f"{kibibytes / 1024:.0f} MiB, {seconds * 1000:.0f} ms",
    )


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX permissions")
def test_what_may_not_be_read_is_named(tmp_path) -> None:
    folder = write_files(tmp_path / "images", {f"{n}.png": png(n) for n in range(4)} | {"shut/a.png": png(8)})
    write_files(folder, {"names only/b.png": png(9)})
    cache = tmp_path / "cache"
    (folder / "1.png").chmod(0)
    (folder / "shut").chmod(0)
    (folder / "names only").chmod(0o444)

    def read() -> tuple[list[str], dict[str, str]]:
        obey_permissions()
        data = opened(folder, cache, max_bad_fraction=1.0)
        return [*data.train.names, *data.validation.names], {bad.name: bad.reason for bad in data.quarantined}

    used, refused = in_a_fork(read)
    assert sorted(used) == ["0.png", "2.png", "3.png"]
    assert refused.keys() == {"1.png", "shut", "names only/b.png"}
    assert all("Permission denied" in reason for reason in refused.values())

    (folder / "1.png").chmod(0o644)  # mended: it is used at the next start, though its time of change is the same
    used, refused = in_a_fork(read)
    assert sorted(used) == ["0.png", "1.png", "2.png", "3.png"]
    (folder / "shut").chmod(0o755)


@pytest.mark.figure
@pytest.mark.skipif(sys.platform == "win32", reason="needs links")
def test_each_file_is_used_once_whatever_leads_to_it(tmp_path) -> None:
    """Loops of links, hundreds of folders in one another, two names for one file."""
    folder = write_files(tmp_path / "images", {"a.png": png(1), "b/c.png": png(2)})
    for name in ("b/up", "b/again", "loop"):
        (folder / name).symlink_to(folder, target_is_directory=True)
    os.link(folder / "a.png", folder / "b" / "same.png")
    deep = folder
    for _ in range(600):  # deeper than a recursive walk gets
        deep = deep / "d"
        deep.mkdir()
    (deep / "far.png").write_bytes(png(3))
    data = opened(folder, tmp_path / "cache")
    assert len(data.train) + len(data.validation) == 3
    assert not data.quarantined
    report(fault="links to the folder itself", target="each file once", result="3 files, not 82")


def test_odd_names_are_reported_on_one_line(tmp_path) -> None:
    """A name may hold anything but a slash: what steers a terminal or forges a line is escaped."""
    names = ["tab\there.png", "new\nline\t.png", "\x1b[2Jcleared.png", "ünïcode 图.png", " .png", "a" * 251 + ".png"]
    folder = write_files(tmp_path / "images", {f"good {n}.png": png(n, 16) for n in range(80)})
    write_files(folder, dict.fromkeys(names, b"nothing"))
    (folder / os.fsdecode(b"\xff\xfe.png")).write_bytes(b"nothing")
    seen = Recorder()
    assert train(request(tmp_path / "run", folder, {"training": {"max_steps": 1}}), [seen]).exit_code == 0
    lines = (tmp_path / "run" / "quarantine.txt").read_text("utf-8").splitlines()
    assert len(lines) == len(names) + 1
    assert all(line.count("\t") == 1 and line.replace("\t", "").isprintable() for line in lines)
    assert all(notice.isprintable() for notice in seen.notices)
    assert sum("图" in line for line in lines) == 1
