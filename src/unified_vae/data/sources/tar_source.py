"""A .tar, .tar.gz or .tgz of images, read like a tape: each pass goes from front to back."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import IO, Any

from unified_vae.core.errors import DataError
from unified_vae.core.printable import printable
from unified_vae.data.records import BadImage, Listing, Quarantined, RawImage
from unified_vae.data.sources.archive import (
    is_archive,
    last_of_each_name,
    nested_note,
    refuse_bomb,
    slashes,
    unsafe_name,
    whole_archive,
)
from unified_vae.data.sources.layout import arrange, is_hidden, is_picture, refusal

_READS_AT_END = 100  # a header that tells a huge size makes tarfile read on and on behind the end
_MAX_HEADER_BYTES = 2**20  # of a long name or of extended headers: they are held in memory
_HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


class TarSource:
    """The images of a tar."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = printable(path.name)

    @contextmanager
    def _tape(self) -> Iterator[tarfile.TarFile]:
        with whole_archive(self.path), self.path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            stream = _Watched(gzip.GzipFile(fileobj=file) if packed else file, self.path, packed)
            with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as tape:  # type: ignore[call-overload]
                yield tape

    @cached_property
    def _arranged(self) -> tuple[list[int], Listing]:
        """The members' ordinal numbers on the tape, and the listing, both in tape order."""
        with self._tape() as tape:
            members, notes = last_of_each_name(
                [(member.name, (number, member)) for number, member in enumerate(tape)],
            )
            _check_end(tape, self.path)
        found: list[tuple[int, str]] = []
        refused: list[Quarantined] = []
        ignored, nested = 0, 0
        for number, member in members:
            if member.isdir() or is_hidden(slashes(member.name)):
                continue
            if not is_picture(member.name):
                ignored += 1
                nested += is_archive(member.name)
            elif reason := _refusal(member):
                refused.append(Quarantined(member.name, reason))
            else:
                found.append((number, member.name))
        names = [slashes(name) for _, name in found]
        used, listing = arrange(names, refused, ignored, [*nested_note(nested), *notes])
        return [found[index][0] for index in used], listing

    def identity(self) -> str:
        """Hash of the whole file: a tar has no directory that could be asked instead."""
        with whole_archive(self.path), self.path.open("rb") as file:
            return f"tar:{hashlib.file_digest(file, 'sha256').hexdigest()}"

    def listing(self) -> Listing:
        return self._arranged[1]

    def read(self, positions: Sequence[int]) -> Iterator[Callable[[], RawImage]]:
        numbers = [self._arranged[0][position] for position in positions]
        wanted = iter(numbers)
        following = next(wanted, None)
        with self._tape() as tape:
            for number, member in enumerate(tape):
                if following is None:
                    return
                if number == following:
                    content = tape.extractfile(member)
                    yield partial(_given, content.read() if content else b"")
                    following = next(wanted, None)
        while following is not None:  # it was cut off after it had been listed
            yield _gone
            following = next(wanted, None)


def _check_end(tape: tarfile.TarFile, path: Path) -> None:
    """tarfile takes a cut or damaged header for the end of the tape; a true end is zeros and nothing else."""
    stream = tape.fileobj
    assert stream is not None, "the tape is open here"
    cut = stream.tell() < tape.offset + tarfile.BLOCKSIZE
    while not cut and (rest := stream.read(2**20)):
        cut = bool(rest.strip(b"\0"))
    if cut:
        raise DataError(f"{path} is cut off or damaged in the middle; fetch or pack it again.")


def _given(data: bytes) -> bytes:
    return data


def _gone() -> bytes:
    raise BadImage("no longer in the archive: it changed while it was read")


def _refusal(member: tarfile.TarInfo) -> str | None:
    if reason := unsafe_name(member.name):
        return reason
    if not member.isreg() or member.issparse():
        return "a link or a special file, not an image"
    return refusal(member.name, member.size)


class _Member(tarfile.TarInfo):
    """A header that is refused where it would make tarfile hold without bound, or go backwards."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> _Member:
        member = super().frombuf(buf, encoding, errors)
        if member.size < 0 or (member.type in _HEADERS and member.size > _MAX_HEADER_BYTES):
            raise tarfile.ReadError(f"a header of {member.size:,} bytes")
        return member


class _Watched(io.RawIOBase):
    """A stream that stops where far more comes out than went in, and where its end is read again and again."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, path: Path, packed: bool) -> None:
        self._stream, self._path = stream, path
        self._packed_bytes = path.stat().st_size if packed else None
        self._read_bytes, self._empty_reads = 0, 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(min(size, 2**20) if size >= 0 else 2**20)
        self._read_bytes += len(data)
        if self._packed_bytes is not None:
            refuse_bomb(self._path, self._read_bytes, self._packed_bytes)
        if not data:
            self._empty_reads += 1
            if self._empty_reads > _READS_AT_END:
                raise EOFError("a member is longer than the archive")
        return data
