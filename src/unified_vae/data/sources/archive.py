"""A .zip or .tar of images: which members are rejected, decompression bombs, damage to the whole.

Archives are read in place: nothing is extracted to the disk, so no name in them can lead anywhere.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, TypeVar

from unified_vae.core.errors import DataError, UserError, escape_name
from unified_vae.data.sources.base import BadImage, Listing, Quarantined, RawImage
from unified_vae.data.sources.folder import arrange, has_image_extension, is_hidden, rejection_reason

MAX_RATIO = 200
"""Deflate reaches about 1000:1 on zeros; images, even raw ones of flat color, stay far below this."""

SMALL_BYTES = 16 * 2**20
"""Below this size a high ratio harms nobody."""

_NESTED = (".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".rar", ".npz")

_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others expand without a bound on memory
_ZIP_ENCRYPTED = 0x1

_TAR_READS_AT_END = 100  # a header that states a huge size makes tarfile read on and on behind the end
_TAR_MAX_HEADER_BYTES = 2**20  # of a long name or of extended headers: they are held in memory
_TAR_HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)

Member = TypeVar("Member")


class ZipSource:
    """The images of a zip. Members are independent, so the loader threads read them in parallel."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = escape_name(path.name)

    @cached_property
    def _zip(self) -> zipfile.ZipFile:
        with _archive_errors(self.path):
            return zipfile.ZipFile(self.path)

    @cached_property
    def _arranged(self) -> tuple[list[zipfile.ZipInfo], Listing]:
        members = [(member.filename, member.filename.endswith("/"), member) for member in self._zip.infolist()]

        def check(images: Sequence[zipfile.ZipInfo]) -> None:
            _reject_bomb(self.path, sum(member.file_size for member in images), self.path.stat().st_size)

        return _arrange_members(members, _zip_rejection_reason, check)

    def identity(self) -> str:
        """Return a hash of the central directory: every member's name, size and CRC."""
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
        for position in positions:
            yield partial(self._read_member, self._arranged[0][position])

    def _read_member(self, member: zipfile.ZipInfo) -> bytes:
        """Read a member; ZipFile locks the shared file, checks the CRC, and stops at the size in the directory."""
        try:
            return self._zip.read(member)
        except Exception as error:  # the reader raises nearly anything on damage
            raise BadImage(f"damaged in the archive: {str(error) or type(error).__name__}") from None


class TarSource:
    """The images of a .tar, .tar.gz or .tgz, read like a tape: each pass goes from front to back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = escape_name(path.name)

    @contextmanager
    def _open(self) -> Iterator[tarfile.TarFile]:
        with _archive_errors(self.path), self.path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            stream = _GuardedStream(gzip.GzipFile(fileobj=file) if packed else file, self.path, packed)
            with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as tape:  # type: ignore[call-overload]
                yield tape

    @cached_property
    def _arranged(self) -> tuple[list[int], Listing]:
        """The members' ordinal numbers on the tape, and the listing, both in tape order."""
        with self._open() as tape:
            members = [(member.name, member.isdir(), (number, member)) for number, member in enumerate(tape)]

            # tarfile takes a cut or damaged header for the end of the tape; a true end is zeros and nothing else
            stream = tape.fileobj
            assert stream is not None, "the tape is open here"
            cut = stream.tell() < tape.offset + tarfile.BLOCKSIZE
            while not cut and (rest := stream.read(2**20)):
                cut = bool(rest.strip(b"\0"))
            if cut:
                raise DataError(f"{self.path} is cut off or damaged in the middle; fetch or pack it again.")
        used, listing = _arrange_members(members, lambda member: _tar_rejection_reason(member[1]))
        return [number for number, _ in used], listing

    def identity(self) -> str:
        """Return a hash of the whole file: a tar has no directory that could be asked instead."""
        with _archive_errors(self.path), self.path.open("rb") as file:
            return f"tar:{hashlib.file_digest(file, 'sha256').hexdigest()}"

    def listing(self) -> Listing:
        return self._arranged[1]

    def read(self, positions: Sequence[int]) -> Iterator[Callable[[], RawImage]]:
        numbers = iter([self._arranged[0][position] for position in positions])
        next_number = next(numbers, None)
        with self._open() as tape:
            for number, member in enumerate(tape):
                if next_number is None:
                    return
                if number == next_number:
                    content = tape.extractfile(member)
                    yield partial(bytes, content.read() if content else b"")
                    next_number = next(numbers, None)
        while next_number is not None:  # it was cut off after it had been listed
            yield _fail_missing
            next_number = next(numbers, None)


def _arrange_members(
    members: Sequence[tuple[str, bool, Member]],
    reason_of: Callable[[Member], str | None],
    check: Callable[[Sequence[Member]], None] = lambda images: None,
) -> tuple[list[Member], Listing]:
    """Select the images among (name, whether it is a folder, member) and assign each its split and class.

    Args:
        reason_of: why a member is rejected, or None.
        check: called with all images; may raise.
    """
    last = {name: index for index, (name, _, _) in enumerate(members)}
    images: list[tuple[str, Member]] = []
    rejected: list[Quarantined] = []
    ignored = nested = 0
    for index, (name, is_folder, member) in enumerate(members):
        path = name.replace("\\", "/")  # some Windows programs write backslashes
        if last[name] != index or is_folder or is_hidden(path):
            continue  # a later member of the same name replaces this one, as it would in unpacking
        if not has_image_extension(name):
            ignored += 1
            nested += name.lower().endswith(_NESTED)
        elif reason := reason_of(member):
            rejected.append(Quarantined(name, reason))
        else:
            images.append((path, member))
    check([member for _, member in images])
    notes = [f"{nested:,} archives inside the archive were not opened: unpack them first."] if nested else []
    if replaced := len(members) - len(last):
        notes.append(f"{replaced:,} members of the archive were passed over: a later one has the same name.")
    used, listing = arrange([path for path, _ in images], rejected, ignored, notes)
    return [images[index][1] for index in used], listing


def _unsafe_name(name: str) -> str | None:
    """Return why a member's name is rejected, or None. Windows forms count everywhere."""
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    if posix.is_absolute() or windows.is_absolute() or windows.drive:
        return "an absolute path inside an archive"
    if ".." in posix.parts or ".." in windows.parts:
        return "a path that leads out of the archive"
    return "a name with a zero byte" if "\0" in name else None


def _zip_rejection_reason(member: zipfile.ZipInfo) -> str | None:
    if reason := _unsafe_name(member.filename):
        return reason
    if stat.S_ISLNK(member.external_attr >> 16):
        return "a link, not an image"
    if member.flag_bits & _ZIP_ENCRYPTED:
        return "encrypted"
    if member.compress_type not in _ZIP_METHODS:
        return "compressed by another method than deflate"
    if member.file_size > SMALL_BYTES and member.file_size > MAX_RATIO * member.compress_size:
        return f"expands more than {MAX_RATIO}-fold: it looks like a decompression bomb"
    return rejection_reason(member.filename, member.file_size)


def _tar_rejection_reason(member: tarfile.TarInfo) -> str | None:
    if reason := _unsafe_name(member.name):
        return reason
    if not member.isreg() or member.issparse():
        return "a link or a special file, not an image"
    return rejection_reason(member.name, member.size)


def _fail_missing() -> bytes:
    raise BadImage("no longer in the archive: it changed while it was read")


def _reject_bomb(path: Path, expanded: int, packed: int) -> None:
    """Raise DataError where the whole of an archive expands out of all proportion."""
    if expanded > SMALL_BYTES and expanded > MAX_RATIO * packed:
        raise DataError(
            f"{path} expands more than {MAX_RATIO}-fold: it looks like a decompression bomb, so it is not read; "
            "if it is yours, unpack it and give the folder."
        )


@contextmanager
def _archive_errors(path: Path) -> Iterator[None]:
    """Turn damage to the archive as a whole into DataError; its readers raise nearly anything on it."""
    try:
        yield
    except (UserError, BadImage):
        raise
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}; fetch or pack it again.") from None
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"{path} is damaged or not an archive ({reason}); fetch or pack it again.") from None


class _Member(tarfile.TarInfo):
    """A header that is refused where it would make tarfile hold without bound, or go backwards."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> _Member:
        member = super().frombuf(buf, encoding, errors)
        if member.size < 0 or (member.type in _TAR_HEADERS and member.size > _TAR_MAX_HEADER_BYTES):
            raise tarfile.ReadError(f"a header of {member.size:,} bytes")
        return member


class _GuardedStream(io.RawIOBase):
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
            _reject_bomb(self._path, self._read_bytes, self._packed_bytes)
        if not data:
            self._empty_reads += 1
            if self._empty_reads > _TAR_READS_AT_END:
                raise EOFError("a member is longer than the archive")
        return data
