"""A .zip or .tar of images, read in place: nothing is extracted to the disk.

Names that would leave the archive, links, encrypted members and members that expand out of all proportion
(decompression bombs) are refused, each with its reason.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path, PurePosixPath, PureWindowsPath

from unified_vae.core.errors import DataError
from unified_vae.data.records import BadImage, Listing, Quarantined, RawImage
from unified_vae.data.sources.layout import arrange, is_hidden, is_picture, refusal

MAX_RATIO = 200
"""Deflate reaches about 1000:1 on zeros; pictures, even raw ones of flat colour, stay far below this."""

SMALL_BYTES = 16 * 2**20
"""Below this size a high ratio harms nobody."""

_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others expand without a bound on memory
_ENCRYPTED = 0x1


def _unsafe_name(name: str) -> str | None:
    """Why a member's name is refused, or None. Windows forms count everywhere."""
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    if posix.is_absolute() or windows.is_absolute() or windows.drive:
        return "an absolute path inside an archive"
    if ".." in posix.parts or ".." in windows.parts:
        return "a path that leads out of the archive"
    if "\0" in name:
        return "a name with a zero byte"
    return None


def _slashes(name: str) -> str:
    """The member's name with "/" between its parts: some Windows programs write backslashes."""
    return name.replace("\\", "/")


class ZipSource:
    """The images of a zip. Members are independent, so the loader threads read them in parallel."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name

    @cached_property
    def _zip(self) -> zipfile.ZipFile:
        with _whole_archive(self.path):
            return zipfile.ZipFile(self.path)

    @cached_property
    def _arranged(self) -> tuple[list[zipfile.ZipInfo], Listing]:
        found: list[zipfile.ZipInfo] = []
        refused: list[Quarantined] = []
        ignored = 0
        for member in self._zip.infolist():
            if member.is_dir() or is_hidden(_slashes(member.filename)):
                continue
            if not is_picture(member.filename):
                ignored += 1
            elif reason := _zip_refusal(member):
                refused.append(Quarantined(member.filename, reason))
            else:
                found.append(member)
        used, listing = arrange([_slashes(member.filename) for member in found], refused, ignored)
        return [found[index] for index in used], listing

    def identity(self) -> str:
        """Hash of the central directory: every member's name, size and CRC."""
        status = self.path.stat()
        digest = hashlib.sha256(f"{status.st_size}\0{status.st_mtime_ns}\n".encode())
        for member in self._zip.infolist():
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
        """The member's bytes; ZipFile locks the shared file and checks the CRC."""
        try:
            return self._zip.read(member)
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            OSError,
            RuntimeError,
            NotImplementedError,
        ) as error:
            raise BadImage(f"damaged in the archive: {error}") from None


def _zip_refusal(member: zipfile.ZipInfo) -> str | None:
    if reason := _unsafe_name(member.filename):
        return reason
    if member.flag_bits & _ENCRYPTED:
        return "encrypted"
    if member.compress_type not in _ZIP_METHODS:
        return "compressed by another method than deflate"
    if member.file_size > SMALL_BYTES and member.file_size > MAX_RATIO * member.compress_size:
        return f"expands more than {MAX_RATIO}-fold: it looks like a decompression bomb"
    return refusal(member.filename, member.file_size)


class TarSource:
    """The images of a .tar, .tar.gz or .tgz. A tar is a tape: each pass reads it from front to back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name

    @contextmanager
    def _tape(self) -> Iterator[tarfile.TarFile]:
        with _whole_archive(self.path), self.path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            limit = max(SMALL_BYTES, MAX_RATIO * self.path.stat().st_size)
            stream = _Bounded(gzip.GzipFile(fileobj=file), limit, self.path) if packed else file
            with tarfile.open(fileobj=stream, mode="r|") as tape:  # type: ignore[call-overload]
                yield tape

    @cached_property
    def _arranged(self) -> tuple[list[int], Listing]:
        """The members' ordinal numbers on the tape, and the listing, both in tape order."""
        found: list[tuple[int, str]] = []
        refused: list[Quarantined] = []
        ignored = 0
        with self._tape() as tape:
            for number, member in enumerate(tape):
                if member.isdir() or is_hidden(_slashes(member.name)):
                    continue
                if not is_picture(member.name):
                    ignored += 1
                elif reason := _tar_refusal(member):
                    refused.append(Quarantined(member.name, reason))
                else:
                    found.append((number, member.name))
            _check_end(tape, self.path)
        used, listing = arrange([_slashes(name) for _, name in found], refused, ignored)
        return [found[index][0] for index in used], listing

    def identity(self) -> str:
        """Hash of the whole file: a tar has no directory that could be asked instead."""
        with self.path.open("rb") as file:
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
                    data = content.read() if content else b""
                    yield partial(_identity, data)
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


def _identity(data: bytes) -> bytes:
    return data


def _tar_refusal(member: tarfile.TarInfo) -> str | None:
    if reason := _unsafe_name(member.name):
        return reason
    if not member.isreg() or member.issparse():
        return "a link or a special file, not an image"
    return refusal(member.name, member.size)


class _Bounded(io.RawIOBase):
    """A decompressing stream that stops when far more comes out than went in."""

    def __init__(self, stream: gzip.GzipFile, limit: int, path: Path) -> None:
        self._stream, self._left, self._path = stream, limit, path

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(min(size, 2**20) if size >= 0 else 2**20)
        self._left -= len(data)
        if self._left < 0:
            raise DataError(
                f"{self._path} expands more than {MAX_RATIO}-fold: it looks like a decompression bomb, "
                "so it is not read; repack it as .zip if it is yours."
            )
        return data


@contextmanager
def _whole_archive(path: Path) -> Iterator[None]:
    """Damage to the archive as a whole is the user's to mend."""
    try:
        yield
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path} is damaged or not an archive ({error}); fetch or pack it again.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None
