"""Where pretrained backbone weights come from: a named file, torchvision's cache, or its download.

A file is trusted only after its sha256 (where its name carries one), its keys, shapes and values were
checked, and it is read without running code. Torchvision itself is never imported: that takes 7 s.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import socket
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import torch
from torch import Tensor

from unified_vae.core.errors import EnvironmentProblem
from unified_vae.core.paths import written_out
from unified_vae.core.shell import quoted
from unified_vae.losses.vgg import Architecture

OFFLINE_VARIABLE = "UNIFIED_VAE_OFFLINE"
_PROBE_SECONDS = 6.0  # how long an absent network may hold up the start
_STALL_SECONDS = 60.0  # silence after which a download is given up
Announce = Callable[[str], None]


class WeightsUnavailable(EnvironmentProblem):
    """Pretrained weights that are neither at hand nor to be had. `reason` leaves out the cure, which `cure` is."""

    def __init__(self, reason: str, architecture: Architecture, setting: str) -> None:
        self.reason = reason
        self.cure = f"put the file {architecture.file} there{_by_hand(architecture)}"
        term = setting.removesuffix(".weights_path")
        super().__init__(f"{term}: {reason}; {self.cure} or give its path as {setting}")


def _by_hand(architecture: Architecture) -> str:
    try:
        return f" ({fetched_by_hand(architecture.file, _address(architecture))})"
    except NoDownload:
        return ""


def fetched_by_hand(file: str, address: str) -> str:
    """How to fetch a file, from a machine with a network if need be, and how to know it."""
    digest = file.rpartition("-")[2].partition(".")[0]
    return f"{quoted('curl', '--create-dirs', '-o', cache_folder() / file, address)}; its sha256 begins {digest}"


def to_stderr(line: str) -> None:
    """Announce where nobody else listens."""
    print(line, file=sys.stderr, flush=True)


def cache_folder() -> Path:
    """Torchvision's folder of downloaded weights (environment variable TORCH_HOME moves it)."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def load_weights(
    architecture: Architecture, weights_path: str | None, setting: str, announce: Announce = to_stderr
) -> dict[str, Tensor]:
    """The backbone's convolution weights, checked, in float32 on the CPU.

    Args:
        architecture: which backbone.
        weights_path: the user's own file, or None to look in the cache and then to download.
        setting: dotted name of the option that holds the path, for messages.
        announce: told in one line before a download starts.

    Raises:
        WeightsUnavailable: nothing in the cache and no download, or a damaged file in the cache.
        EnvironmentProblem: the user's own file is missing, unreadable, damaged or of another network.
    """
    if weights_path is not None:
        try:
            return _read(written_out(weights_path, setting), architecture)
        except BadFile as problem:
            raise EnvironmentProblem(f"{setting}: {problem}; give the file {architecture.file}") from None
    path = cache_folder() / architecture.file
    try:
        if not path.exists():
            download(architecture.title, path, lambda: _address(architecture), announce)
        return _read(path, architecture)
    except BadFile as problem:
        raise WeightsUnavailable(f"{problem}; delete it", architecture, setting) from None
    except NoDownload as problem:
        reason = f"the pretrained {architecture.title} weights are not in {path.parent} and {problem}"
        raise WeightsUnavailable(reason, architecture, setting) from None


class BadFile(Exception):
    """A weights file that cannot be used: which and why."""


class NoDownload(Exception):
    """Why the weights cannot be downloaded."""


def _read(path: Path, architecture: Architecture) -> dict[str, Tensor]:
    """Read a file once per state of it on disk: resolving and building ask for the same one."""
    try:
        status = path.stat()
        if not path.is_file():
            raise BadFile(f"{path} is not a file")
        return _read_checked(path, architecture, status.st_size, status.st_mtime_ns)
    except OSError as problem:
        raise BadFile(f"{path} cannot be read ({problem.strerror or problem})") from None


@lru_cache(maxsize=2)
def _read_checked(path: Path, architecture: Architecture, _size: int, _mtime_ns: int) -> dict[str, Tensor]:
    return _checked(read_tensors(path), path, architecture)


def read_tensors(path: Path) -> object:
    """What a file saved by torch holds; its sha256 is compared where its name carries one, and it runs no code.

    Raises:
        BadFile: it is damaged, or of something else than tensors.
        OSError: it cannot be read.
    """
    _check_sha256(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError:
        raise
    except Exception as problem:  # the unpickler's many errors all mean: not a file of tensors
        raise BadFile(f"{path} is damaged or no file of weights ({type(problem).__name__})") from None


def _check_sha256(path: Path) -> None:
    """The name of a published file ends in the first digits of its sha256: compare."""
    named = re.search(r"-([0-9a-f]{8,64})\.", path.name)
    if named is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(named[1]):
        raise BadFile(f"{path} is damaged (its sha256 begins {found[: len(named[1])]}, not {named[1]})")


def _checked(content: object, path: Path, architecture: Architecture) -> dict[str, Tensor]:
    """The convolutions of a state dict, copied to float32."""
    if not isinstance(content, dict):
        raise BadFile(f"{path} holds no state dict")
    weights = {}
    for key, shape in (item for conv in architecture.convs() for item in conv.shapes().items()):
        tensor = content.get(key)
        if not isinstance(tensor, Tensor):
            raise BadFile(f"{path} is not of {architecture.title}: {key} is missing")
        if tuple(tensor.shape) != shape:
            raise BadFile(f"{path} is not of {architecture.title}: {key} is {list(tensor.shape)}, not {list(shape)}")
        weights[key] = tensor.detach().to(torch.float32, copy=True)
        if not weights[key].isfinite().all():
            raise BadFile(f"{path} is damaged: {key} holds values that are not finite")
    return weights


def download(title: str, path: Path, find_address: Callable[[], str], announce: Announce = to_stderr) -> None:
    """Fetch a file as torchvision would: same address, same cache, sha256 checked.

    Raises:
        NoDownload: why not.
    """
    if os.environ.get(OFFLINE_VARIABLE, "0") not in ("", "0"):
        raise NoDownload(f"downloads are switched off by {OFFLINE_VARIABLE}")
    address = find_address()
    megabytes = _within(_PROBE_SECONDS, lambda: _megabytes(address))
    announce(f"Downloading the pretrained {title} weights ({megabytes}) to {path}, once for all runs.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _stalls_after(_STALL_SECONDS):
            torch.hub.download_url_to_file(address, str(path), hash_prefix=path.stem.rpartition("-")[2])
    except (OSError, HTTPException, RuntimeError) as problem:  # RuntimeError: the sha256 differs
        raise NoDownload(f"their download failed ({_why(problem)})") from None


def _address(architecture: Architecture) -> str:
    """The address that the installed torchvision gives, read from its source instead of imported."""
    spec = importlib.util.find_spec("torchvision")
    for folder in spec.submodule_search_locations or [] if spec else []:
        for source in (Path(folder) / "models").glob("*.py"):
            found = re.search(r'"(https://[^"\s]+/' + re.escape(architecture.file) + ')"', source.read_text("utf-8"))
            if found:
                return found[1]
    raise NoDownload(f"the installed torchvision, if any, does not say where {architecture.file} is to be downloaded")


def _megabytes(address: str) -> str:
    """Size of what lies at the address, in words. Asking for it also shows whether there is a network."""
    with urlopen(Request(address, method="HEAD"), timeout=_PROBE_SECONDS) as answer:
        length = answer.headers.get("Content-Length")
    return f"{int(length) / 1e6:.0f} MB" if length else "of unknown size"


def _within(seconds: float, ask: Callable[[], str]) -> str:
    """The answer of `ask` within `seconds`. A thread, because looking up a name has no time limit."""
    outcome: list[str | Exception] = []

    def run() -> None:
        try:
            outcome.append(ask())
        except (OSError, HTTPException) as problem:  # URLError and timeouts are OSErrors
            outcome.append(problem)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    match outcome:
        case [str(answer)]:
            return answer
        case [Exception() as problem]:
            raise NoDownload(f"cannot be downloaded ({_why(problem)})")
        case _:
            raise NoDownload(f"cannot be downloaded (no answer within {seconds:.0f} s)")


def _why(problem: Exception) -> str:
    """The cause in words: an URLError wraps the system's error, which has a number in front."""
    cause = problem.reason if isinstance(problem, URLError) else problem
    return (isinstance(cause, OSError) and cause.strerror) or str(cause) or type(cause).__name__


@contextmanager
def _stalls_after(seconds: float) -> Iterator[None]:
    """A time limit on silence for sockets opened inside: torch's downloader would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
