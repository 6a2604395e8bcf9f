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
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, NamedTuple

from unified_vae.core.errors import DataError, UserError, escape_name
from unified_vae.data.sources.base import BadImage, Listing, Loader, Quarantined, hash_file
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


class _Member(NamedTuple):
    """A member of an archive, unread: `problem` is why its kind is rejected, `handle` what its content is read by."""

    name: str
    is_folder: bool
    size: int
    problem: str | None
    handle: Any


class ArchiveSource(ABC):
    """The images of an archive."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = escape_name(path.name)

    @abstractmethod
    def _members(self) -> list[_Member]:
        """List all members, in the order in which they are read."""

    @cached_property
    def _arranged(self) -> tuple[list[Any], Listing]:
        """The handles of the images that are used, and the listing, in the same order."""
        members = self._members()
        last = {member.name: index for index, member in enumerate(members)}
        paths: list[str] = []
        images: list[_Member] = []
        rejected: list[Quarantined] = []
        ignored, nested = Counter[str](), 0
        for index, member in enumerate(members):
            name, path = member.name, member.name.replace("\\", "/")  # some Windows programs write backslashes
            if last[name] != index or member.is_folder or is_hidden(path):
                continue  # a later member of the same name replaces this one, as it would in unpacking
            if not has_image_extension(name):
                ignored[PurePosixPath(path).suffix.lower()] += 1
                nested += name.lower().endswith(_NESTED)
            elif reason := _unsafe_name(name) or member.problem or rejection_reason(name, member.size):
                rejected.append(Quarantined(name, reason))
            else:
                paths.append(path)
                images.append(member)
        _reject_bomb(self.path, sum(member.size for member in images), self.path.stat().st_size)
        notes = [f"{nested:,} archives inside the archive were not opened: unpack them first."] if nested else []
        if replaced := len(members) - len(last):
            notes.append(f"{replaced:,} members of the archive were passed over: a later one has the same name.")
        used, listing = arrange(paths, rejected, ignored, notes)
        return [images[index].handle for index in used], listing

    def listing(self) -> Listing:
        """See `Source.listing`."""
        return self._arranged[1]


class ZipSource(ArchiveSource):
    """The images of a zip. Members are independent, so the loader threads read them in parallel."""

    @cached_property
    def _zip(self) -> zipfile.ZipFile:
        with _archive_errors(self.path):
            return zipfile.ZipFile(self.path)

    def _members(self) -> list[_Member]:
        def problem(member: zipfile.ZipInfo) -> str | None:
            if stat.S_ISLNK(member.external_attr >> 16):
                return "a link, not an image"
            if member.flag_bits & _ZIP_ENCRYPTED:
                return "encrypted"
            if member.compress_type not in _ZIP_METHODS:
                return "compressed by another method than deflate"
            bomb = _is_bomb(member.file_size, member.compress_size)
            return f"expands more than {MAX_RATIO}-fold: it looks like a decompression bomb" if bomb else None

        return [
            _Member(member.filename, member.filename.endswith("/"), member.file_size, problem(member), member)
            for member in self._zip.infolist()
        ]

    def identity(self) -> str:
        """Return a hash of the central directory: every member's name, size and CRC."""
        members = self._zip.infolist()
        status = self.path.stat()
        digest = hashlib.sha256(f"{status.st_size}\0{status.st_mtime_ns}\n".encode())
        for member in members:
            line = f"{member.filename}\0{member.file_size}\0{member.CRC}\n"
            digest.update(line.encode("utf-8", "surrogatepass"))
        return f"zip:{digest.hexdigest()}"

    def read(self, positions: Sequence[int]) -> Iterator[Loader]:
        """See `Source.read`; ZipFile locks the shared file, checks the CRC, and stops at the size in the directory."""

        def load(member: zipfile.ZipInfo) -> bytes:
            try:
                return self._zip.read(member)
            except Exception as error:  # the reader raises nearly anything on damage
                raise BadImage(f"damaged in the archive: {str(error) or type(error).__name__}") from None

        for position in positions:
            yield partial(load, self._arranged[0][position])


class TarSource(ArchiveSource):
    """The images of a .tar, .tar.gz or .tgz, read like a tape: each pass goes from front to back."""

    @contextmanager
    def _open(self) -> Iterator[tarfile.TarFile]:
        with _archive_errors(self.path), self.path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            stream = _GuardedStream(gzip.GzipFile(fileobj=file) if packed else file, self.path)
            with tarfile.open(fileobj=stream, mode="r|", tarinfo=_CheckedHeader) as tape:  # type: ignore[call-overload]
                yield tape

    def _members(self) -> list[_Member]:
        with self._open() as tape:
            members = []
            for number, member in enumerate(tape):
                special = not member.isreg() or member.issparse()
                problem = "a link or a special file, not an image" if special else None
                members.append(_Member(member.name, member.isdir(), member.size, problem, number))

            # tarfile takes a cut or damaged header for the end of the tape; a true end is zeros and nothing else
            stream = tape.fileobj
            assert stream is not None, "the tape is open here"
            cut = stream.tell() < tape.offset + tarfile.BLOCKSIZE
            while not cut and (rest := stream.read(2**20)):
                cut = bool(rest.strip(b"\0"))
            if cut:
                raise DataError(f"{self.path} is cut off or damaged in the middle; fetch or pack it again.")
        return members

    def identity(self) -> str:
        """Return a hash of the whole file: a tar has no directory to hash instead."""
        with _archive_errors(self.path):
            return f"tar:{hash_file(self.path)}"

    def read(self, positions: Sequence[int]) -> Iterator[Loader]:
        """See `Source.read`."""
        numbers = [self._arranged[0][position] for position in positions]
        done = 0
        with self._open() as tape:
            for number, member in enumerate(tape):
                if done == len(numbers):
                    return
                if number == numbers[done]:
                    content = tape.extractfile(member)
                    done += 1
                    yield partial(bytes, content.read() if content else b"")
        yield from [_fail_missing] * (len(numbers) - done)  # it was cut off after it had been listed


def _unsafe_name(name: str) -> str | None:
    """Return why a member's name is rejected, or None. Windows forms count everywhere."""
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    if posix.is_absolute() or windows.is_absolute() or windows.drive:
        return "an absolute path inside an archive"
    if ".." in posix.parts or ".." in windows.parts:
        return "a path that leads out of the archive"
    return "a name with a zero byte" if "\0" in name else None


def _fail_missing() -> bytes:
    raise BadImage("no longer in the archive: it changed while it was read")


def _is_bomb(expanded: int, packed: int) -> bool:
    return expanded > SMALL_BYTES and expanded > MAX_RATIO * packed


def _reject_bomb(path: Path, expanded: int, packed: int) -> None:
    """Raise DataError where an archive as a whole expands too much."""
    if _is_bomb(expanded, packed):
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


class _CheckedHeader(tarfile.TarInfo):
    """A header that is refused where it would make tarfile hold without bound, or go backwards."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> _CheckedHeader:
        member = super().frombuf(buf, encoding, errors)
        if member.size < 0 or (member.type in _TAR_HEADERS and member.size > _TAR_MAX_HEADER_BYTES):
            raise tarfile.ReadError(f"a header of {member.size:,} bytes")
        return member


class _GuardedStream(io.RawIOBase):
    """A stream that stops where far more comes out than went in, and where its end is read again and again."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, path: Path) -> None:
        self._stream, self._path, self._packed_bytes = stream, path, path.stat().st_size
        self._read_bytes, self._empty_reads = 0, 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(min(size, 2**20) if size >= 0 else 2**20)
        self._read_bytes += len(data)
        _reject_bomb(self._path, self._read_bytes, self._packed_bytes)
        if not data:
            self._empty_reads += 1
            if self._empty_reads > _TAR_READS_AT_END:
                raise EOFError("a member is longer than the archive")
        return data
