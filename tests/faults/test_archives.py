"""Archives made to do harm: refused with a sentence, or their bad members named; no hang, no flood of memory."""

from __future__ import annotations

import struct
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.archives import tarred, zipped
from tests.helpers.images import opened, png
from unified_vae.core.errors import DataError
from unified_vae.data.dataset import DataSets

PICTURES = {f"{n}.png": png(n) for n in range(20)}


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A tar header that says any size, negative and beyond octal digits included, with a right checksum."""
    member = tarfile.TarInfo(name)
    member.type = kind
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    digits = size.to_bytes(11, "big", signed=True)
    block[124:136] = (b"\xff" if size < 0 else b"\x80") + digits
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def total(data: DataSets) -> int:
    return len(data.train) + len(data.validation)


@pytest.mark.parametrize("size", [10**15, 2**62, -512, -(10**9)])
def test_a_tar_that_tells_an_impossible_size_ends_soon(size: int, tmp_path: Path) -> None:
    """tarfile would read on and on behind the end for the first, and go back for ever for the last."""
    path = tarred(tmp_path / "images.tar", PICTURES)
    whole = path.read_bytes().rstrip(b"\0")
    whole += bytes(-len(whole) % 512)
    path.write_bytes(whole + header("far.png", size) + bytes(1024))
    begun = time.process_time()
    with pytest.raises(DataError, match="pack it again"):
        opened(path, tmp_path / "cache")
    assert time.process_time() - begun < 5


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE])
def test_headers_that_would_fill_the_memory_are_refused(kind: bytes, tmp_path: Path) -> None:
    size = 64 * 2**20
    (tmp_path / "images.tar").write_bytes(header("long", size, kind) + bytes(size) + bytes(1024))
    with pytest.raises(DataError, match="header of 67,108,864 bytes"):
        opened(tmp_path / "images.tar", tmp_path / "cache")


def test_what_is_no_file_in_a_tar_is_named(tmp_path: Path) -> None:
    path = tarred(tmp_path / "images.tar", PICTURES)
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
    with tarfile.open(path, "a") as archive:
        for number, kind in enumerate(kinds):
            member = tarfile.TarInfo(f"odd {number}.png")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    data = opened(path, tmp_path / "cache", max_bad_fraction=0.5)
    assert {bad.name for bad in data.quarantined} == {f"odd {number}.png" for number in range(len(kinds))}
    assert all("a link or a special file" in bad.reason for bad in data.quarantined)
    assert total(data) == len(PICTURES)


def test_links_and_encrypted_members_of_a_zip_are_named(tmp_path: Path) -> None:
    path = zipped(tmp_path / "images.zip", PICTURES)
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("link.png")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("locked.png", PICTURES["0.png"])
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\x01\x02")  # of locked.png, the last one
    content[place + 8] |= 1
    path.write_bytes(content)
    data = opened(path, tmp_path / "cache", max_bad_fraction=0.5)
    reasons = {bad.name: bad.reason for bad in data.quarantined}
    assert reasons == {"link.png": "a link, not an image", "locked.png": "encrypted"}


@pytest.mark.parametrize("make", [zipped, tarred])
def test_of_members_of_one_name_the_last_is_used(make: Callable[..., Path], tmp_path: Path) -> None:
    path = make(tmp_path / ("images.zip" if make is zipped else "images.tar"), PICTURES)
    if make is zipped:
        with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("0.png", png(77))
    else:
        tarred(path, {"0.png": png(77)}, "a")
    data = opened(path, tmp_path / "cache")
    assert total(data) == len(PICTURES) and any("later one has the same name" in note for note in data.notes)
    for split in (data.train, data.validation):
        if "0.png" in split.names:
            wanted = opened(zipped(tmp_path / "one.zip", {"0.png": png(77), "1.png": png(1)}), tmp_path / "other")
            other = wanted.train if "0.png" in wanted.train.names else wanted.validation
            image = other.images[list(other.names).index("0.png")]
            np.testing.assert_array_equal(split.images[list(split.names).index("0.png")], image)


def test_archives_in_an_archive_are_reported_and_not_opened(tmp_path: Path) -> None:
    inner = zipped(tmp_path / "inner.zip", PICTURES).read_bytes()
    with pytest.raises(DataError, match="1 archives inside the archive were not opened: unpack them first"):
        opened(zipped(tmp_path / "outer.zip", {"inner.zip": inner}), tmp_path / "cache")


def overlapping(path: Path, count: int) -> Path:
    """A zip of many members that share one compressed piece of zeros: 15 MB each, a few kB in all."""
    piece = zlib.compressobj(9, zlib.DEFLATED, -15)
    raw = bytes(15 * 2**20)
    data = piece.compress(raw) + piece.flush()
    crc = zlib.crc32(raw)
    fields = (20, 0, 8, 0, 0, crc, len(data), len(raw))
    content = bytearray(struct.pack("<4sHHHHHIIIHH", b"PK\x03\x04", *fields, 5, 0) + b"0.bmp" + data)
    start = len(content)
    for number in range(count):
        name = b"%d.bmp" % number
        content += struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\x01\x02", 20, *fields, len(name), 0, 0, 0, 0, 0, 0) + name
    content += struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, count, count, len(content) - start, start, 0)
    path.write_bytes(content)
    return path


def test_members_that_share_their_bytes_are_a_bomb(tmp_path: Path) -> None:
    """Each is small enough by itself; together they would expand to 15 GB."""
    path = overlapping(tmp_path / "images.zip", 1000)
    assert path.stat().st_size < 100_000
    begun = time.process_time()
    with pytest.raises(DataError, match="decompression bomb"):
        opened(path, tmp_path / "cache")
    assert time.process_time() - begun < 2
