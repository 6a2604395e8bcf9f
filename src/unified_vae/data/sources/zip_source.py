"""A .zip of images. Members that lie outside, are encrypted or expand out of all proportion are refused."""

from __future__ import annotations

import hashlib
import stat
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path

from unified_vae.core.printable import printable
from unified_vae.data.records import BadImage, Listing, Quarantined, RawImage
from unified_vae.data.sources.archive import (
    MAX_RATIO,
    SMALL_BYTES,
    is_archive,
    last_of_each_name,
    nested_note,
    refuse_bomb,
    slashes,
    unsafe_name,
    whole_archive,
)
from unified_vae.data.sources.layout import arrange, is_hidden, is_picture, refusal

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others expand without a bound on memory
_ENCRYPTED = 0x1


class ZipSource:
    """The images of a zip. Members are independent, so the loader threads read them in parallel."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = printable(path.name)

    @cached_property
    def _zip(self) -> zipfile.ZipFile:
        with whole_archive(self.path):
            return zipfile.ZipFile(self.path)

    @cached_property
    def _arranged(self) -> tuple[list[zipfile.ZipInfo], Listing]:
        found: list[zipfile.ZipInfo] = []
        refused: list[Quarantined] = []
        ignored, nested = 0, 0
        members, notes = last_of_each_name([(member.filename, member) for member in self._zip.infolist()])
        for member in members:
            if member.filename.endswith("/") or is_hidden(slashes(member.filename)):
                continue
            if not is_picture(member.filename):
                ignored += 1
                nested += is_archive(member.filename)
            elif reason := _refusal(member):
                refused.append(Quarantined(member.filename, reason))
            else:
                found.append(member)
        refuse_bomb(self.path, sum(member.file_size for member in found), self.path.stat().st_size)
        names = [slashes(member.filename) for member in found]
        used, listing = arrange(names, refused, ignored, [*nested_note(nested), *notes])
        return [found[index] for index in used], listing

    def identity(self) -> str:
        """Hash of the central directory: every member's name, size and CRC."""
        members = self._zip.infolist()
        status = self.path.stat()
        digest = hashlib.sha256(f"{status.st_size}\0{status.st_mtime_ns}\n".encode())
        for member in members:
            line = f"{member.filename}\0{member.file_size}\0{member.CRC}\n"
            digest.update(line.encode("utf-8", "surrogatepass"))
        return f"zip:{digest.hexdigest()}"

    def listing(self) -> Listing:
        return self._arranged[1]

    def read(self, positions: Sequence[int]) -> Iterator[Callable[[], RawImage]]:
        members, _ = self._arranged
        for position in positions:
            yield partial(self._read_member, members[position])

    def _read_member(self, member: zipfile.ZipInfo) -> bytes:
        """The member's bytes; ZipFile locks the shared file, checks the CRC, and stops at the size that was told."""
        try:
            return self._zip.read(member)
        except Exception as error:  # the reader raises nearly anything on damage
            raise BadImage(f"damaged in the archive: {str(error) or type(error).__name__}") from None


def _refusal(member: zipfile.ZipInfo) -> str | None:
    if reason := unsafe_name(member.filename):
        return reason
    if stat.S_ISLNK(member.external_attr >> 16):
        return "a link, not an image"
    if member.flag_bits & _ENCRYPTED:
        return "encrypted"
    if member.compress_type not in _METHODS:
        return "compressed by another method than deflate"
    if member.file_size > SMALL_BYTES and member.file_size > MAX_RATIO * member.compress_size:
        return f"expands more than {MAX_RATIO}-fold: it looks like a decompression bomb"
    return refusal(member.filename, member.file_size)
