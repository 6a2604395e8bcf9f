"""The list of a checkpoint's files, with sizes and checksums. It is written last: without it there is no checkpoint.

It is sealed by a checksum of itself, and only the very text that this program writes is read, so that no change of
a single bit passes, wherever it falls.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unified_vae.core.durable import reason, sync_file
from unified_vae.core.errors import CheckpointError
from unified_vae.core.version import __version__

MANIFEST = "MANIFEST.json"
STATE = "state.json"
FORMAT = 1
MOST_BYTES = 1 << 20  # a manifest has about a kilobyte; what is larger is none


class OtherFormat(CheckpointError):
    """A whole checkpoint that another version of this program wrote in a format of its own."""


def write_manifest(folder: Path, step: int) -> None:
    """Describe the files in `folder`, which are on the disk already."""
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(folder.iterdir())}
    content = {"format": FORMAT, "step": step, "written_by": f"unified-vae {__version__}", "files": files}
    path = folder / MANIFEST
    path.write_text(_text({**content, "seal": seal(content)}), encoding="utf-8")
    sync_file(path)


def read_manifest(folder: Path, step: int) -> Mapping[str, Mapping[str, Any]]:
    """File name -> `bytes` and `sha256`, of the checkpoint of `step`.

    Raises:
        OtherFormat: it is whole, and of another format.
        CheckpointError: it is missing, damaged, or of something else.
    """
    path = folder / MANIFEST
    content = _sealed(path)
    if content.get("format") != FORMAT:
        raise OtherFormat(
            f"{folder} was written by {content.get('written_by', 'another version')} in format "
            f"{content.get('format')}; this is unified-vae {__version__}, which reads format {FORMAT}. "
            "Continue with that version, or start afresh with --no-resume (the old run is moved aside, not deleted)."
        )
    files = content.get("files")
    if not (isinstance(files, dict) and STATE in files and all(_describes(*entry) for entry in files.items())):
        raise CheckpointError(f"{path} does not describe a checkpoint")
    if content.get("step") != step:
        raise CheckpointError(f"{path} is of step {content.get('step')}, its folder of step {step}: it was renamed")
    return files


def _sealed(path: Path) -> dict[str, Any]:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError("it is not a file")
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ValueError("it is too large")
        content = json.loads(data.decode("utf-8"))
        unchanged = isinstance(content, dict) and data == _text(content).encode()
    except FileNotFoundError as problem:
        raise CheckpointError(f"{path} is missing") from problem
    except (OSError, ValueError, RecursionError) as problem:
        raise CheckpointError(f"{path} cannot be read: {reason(problem)}") from problem
    if not unchanged or content.pop("seal", None) != seal(content):
        raise CheckpointError(f"{path} does not match its own checksum: it was damaged or changed after it was saved")
    return content


def _describes(name: str, entry: Any) -> bool:
    """Whether this is a file inside the folder, with a size and a checksum."""
    if not isinstance(entry, dict) or Path(name).name != name or name in ("", ".", "..") or "\0" in name:
        return False
    return isinstance(entry.get("bytes"), int) and isinstance(entry.get("sha256"), str)


def seal(content: Mapping[str, Any]) -> str:
    """Checksum of the manifest itself, so that damage to it is not taken for damage to what it names."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1)


def sha256_of(path: Path) -> str:
    """Of a file, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
