"""Where an export is written: refused early where it cannot be, and complete under its name or not there.

Importing this does not import torch.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unified_vae.core.durable import STAGE_PREFIX, discard, reason, sync_folder
from unified_vae.core.errors import ConfigError, EnvironmentProblem
from unified_vae.experiment.export.request import ExportRequest, Format, Half

ABOUT = "export.json"  # what marks a folder as one of ours
BESIDE = ("evaluation.json", "diagnosis.json", "diagnosis.png")  # what other verbs write into a model's folder
FORMAT = 1
_PACKAGES = {Format.ONNX: ("onnx", "onnxruntime", "onnxscript"), Format.DIFFUSERS: ("diffusers",)}


def check(request: ExportRequest) -> None:
    """Tell at once what would fail after torch was loaded.

    Raises:
        ConfigError: no such target, or a combination that there is not.
        EnvironmentProblem: a package or a compiler is missing, or the output cannot be written.
    """
    target = request.target
    if target.is_file():
        raise ConfigError(
            f"{target} is a file, which is not opened: a pickle could run code hidden in it. Name the folder of a run "
            "(runs/NAME), of one of its checkpoints, or of an exported model."
        )
    if not target.is_dir():
        raise ConfigError(f"{target} is not there: name the folder of a run, e.g. runs/fast_high_quality")
    _check_half(request)
    _check_packages(request.to)
    if request.output is not None:
        refuse_other(request.output)
        _refuse_unwritable(request.output)


def _check_half(request: ExportRequest) -> None:
    if request.half is None:
        return
    if request.to in (Format.SAFETENSORS, Format.DIFFUSERS):
        raise ConfigError("--half: a folder of weights keeps float32; its reader may choose another precision.")
    if request.to is Format.ONNX and request.half is Half.BF16:
        raise ConfigError("--half bf16: onnxruntime has no bf16 convolution on the CPU to compare with. Use fp16.")
    if request.images == 0:
        raise ConfigError("--half needs the audit, which looks at images: leave --images 0 out.")


def _check_packages(to: Format) -> None:
    missing = [name for name in _PACKAGES.get(to, ()) if importlib.util.find_spec(name) is None]
    if missing:
        raise EnvironmentProblem(f"--to {to} needs {' and '.join(missing)}: uv sync --extra {to}")
    if to is Format.AOTI and not _has_compiler():
        raise EnvironmentProblem(
            "--to aoti compiles C++ and there is no compiler here (g++, clang++ or what CXX names): install one, "
            "or use --to torch, which needs none."
        )


def _has_compiler() -> bool:
    named = os.environ.get("CXX")
    return any(shutil.which(name) for name in ([named.split()[0]] if named else ["g++", "clang++", "cl"]))


def refuse_other(folder: Path) -> None:
    """Raise ConfigError where something lies that is not, all of it, an earlier export and what was measured of it."""
    if not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir())):
        return
    files = _files_of(folder)
    known = {ABOUT, *files, *BESIDE}
    others = sorted(path.name for path in folder.iterdir() if path.name not in known) if folder.is_dir() else []
    if not folder.is_dir() or folder.is_symlink() or not files or others:
        what = f"holds {others[0]}, which no export wrote" if others else "is no folder of an earlier export"
        raise ConfigError(f"{folder} {what}, so it is not overwritten: name another folder with --output")


def _files_of(folder: Path) -> list[str]:
    """The files that an earlier export says it wrote; none where it is no export."""
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        return [str(name) for name in about["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _refuse_unwritable(folder: Path) -> None:
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise _unwritable(folder, f"{place} takes no new files")


def _unwritable(folder: Path, why: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"{folder} cannot be written ({why}): name another folder with --output, free space, or mend the permissions."
    )


def default_output(request: ExportRequest, home: Path, step: int | None, weights: str) -> Path:
    """A folder of its own for each combination, below `exports` beside the run's checkpoints."""
    words = [str(request.to)]
    one = request.target.resolve().parent.name == "checkpoints"  # of the checkpoints, and not the best
    words += [f"step-{step}"] if one or request.checkpoint not in (None, "best") else []
    words += [] if weights == "ema" else [weights]
    words += [] if request.half is None else [str(request.half)]
    return home / "exports" / "-".join(words)


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A folder to fill beside `folder`, which takes its name at the end, in place of an earlier export.

    Where the block raises, it is deleted, and what lay under the name is kept.

    Raises:
        ConfigError: something that is no export lies there.
        EnvironmentProblem: the disk is full or cannot be written.
    """
    refuse_other(folder)
    stage = folder.with_name(f"{STAGE_PREFIX}{folder.name}-{os.getpid()}")
    try:
        discard(stage)
        stage.mkdir(parents=True)
        yield stage
        _publish(stage, folder)
    except OSError as problem:
        raise _unwritable(folder, reason(problem)) from problem
    finally:
        discard(stage)


def _publish(stage: Path, folder: Path) -> None:
    refuse_other(folder)  # again: it may have been filled meanwhile
    old = folder.with_name(f"{STAGE_PREFIX}{folder.name}-old-{os.getpid()}")
    if folder.is_dir():
        folder.rename(old)
    stage.rename(folder)
    discard(old)
    sync_folder(folder.parent)


def write_about(stage: Path, content: Mapping[str, Any]) -> None:
    """Say in the folder what it is; called last, when every file is there."""
    files = {path.name: path.stat().st_size for path in sorted(stage.iterdir())}
    text = json.dumps({"format": FORMAT, **content, "files": files}, indent=2) + "\n"
    (stage / ABOUT).write_text(text, encoding="utf-8")
