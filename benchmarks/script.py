"""What all benchmark scripts share at their border: options, where the images are, the table, the result file."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from machine import RESULTS, write_result
from unified_vae.core.errors import ConfigError, DataError, UserError

DATA_VARIABLE = "UNIFIED_VAE_BENCHMARK_DATA"
PLACES = ("data_dir", "images", "work_dir", "run", "processes")  # options that say nothing of what is computed


def parser(name: str, purpose: str | None) -> argparse.ArgumentParser:
    """The options that every script has."""
    options = argparse.ArgumentParser(description=purpose, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="tiny settings: shows that the script works, no figures")
    options.add_argument("--data-dir", type=Path, help=f"folder of NAME.zip archives; default ${DATA_VARIABLE}")
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    options.add_argument("--threads", type=int, default=1, help="of torch, in each process")
    options.add_argument("--processes", type=int, default=1, help="runs at a time")
    work_dir = Path(tempfile.gettempdir()) / "unified-vae-benchmarks" / name
    options.add_argument("--work-dir", type=Path, default=work_dir, help="runs; a stopped benchmark goes on from there")
    options.add_argument("--select", action="store_true", help="see a split of train/ alone, to choose settings by")
    options.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="as in train.py, for each run"
    )
    return options


def start(main: Callable[[], None]) -> None:
    """Run a script's `main`: a user's mistake is one sentence, and SIGTERM ends like Ctrl-C."""
    os.environ.setdefault("UNIFIED_VAE_OFFLINE", "1")  # a benchmark downloads nothing; its JSON says what was replaced
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        main()
    except UserError as mistake:
        raise SystemExit(f"{mistake}") from None


def settle(options: argparse.Namespace) -> argparse.Namespace:
    """Carry out what the options say of the process."""
    torch.set_num_threads(options.threads)
    options.work_dir.mkdir(parents=True, exist_ok=True)
    return options


def source(options: argparse.Namespace, name: str) -> str:
    """What `data.source` is for a set: its archive, or with --select one of its train/ folder alone.

    Raises:
        DataError: no folder was given, or it lacks the archive.
    """
    if name == "builtin":
        return name
    folder = options.data_dir or os.environ.get(DATA_VARIABLE)
    if not folder:
        raise DataError(f"there are no images: name the folder of archives with --data-dir or ${DATA_VARIABLE}.")
    archive = Path(folder).absolute() / f"{name}.zip"
    if not archive.is_file():
        raise DataError(f"there is no {archive.name} in the folder given with --data-dir or ${DATA_VARIABLE}.")
    return str(train_only(archive, options.work_dir) if options.select else archive)


def train_only(archive: Path, folder: Path) -> Path:
    """An archive of the images under train/ alone, which the trainer splits by itself: val/ stays unseen."""
    target = folder / f"{archive.stem}-train-only.zip"
    if not target.is_file():
        stage = target.with_suffix(".tmp")
        with zipfile.ZipFile(archive) as whole, zipfile.ZipFile(stage, "w") as part:
            for entry in whole.infolist():
                if "train" in PurePosixPath(entry.filename).parts[:-1]:
                    part.writestr(entry, whole.read(entry))
        stage.replace(target)
    return target


def overrides(options: argparse.Namespace) -> dict[str, object]:
    """The words after --set as settings of a `Job`."""
    settings: dict[str, object] = {}
    for word in options.set:
        path, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"--set {word}: write path=value")
        settings[path] = _json_or_text(value)
    return settings


def _json_or_text(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def result_name(options: argparse.Namespace, name: str) -> str:
    """The result's name: figures of --quick and --select never replace the real ones."""
    return name + ("-quick" if options.quick else "") + ("-selection" if options.select else "")


def save(options: argparse.Namespace, name: str, payload: dict[str, Any]) -> None:
    """Write the result with the options it was made with, and say where."""
    settings = {key: value for key, value in vars(options).items() if key not in PLACES}
    path = write_result(result_name(options, name), {"settings": settings, **payload})
    print(f"\nwritten: {path.relative_to(RESULTS.parent.parent)}")


def earlier(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """The result that is there already; empty where there is none."""
    path = RESULTS / f"{result_name(options, name)}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print aligned columns, numbers to the right."""
    cells = [[_text(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    print()
    for first, *others in [list(headings), ["-" * width for width in widths], *cells]:
        padded = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *padded]))


def _text(cell: object) -> str:
    return f"{cell:.2f}" if isinstance(cell, float) else "-" if cell is None else str(cell)
