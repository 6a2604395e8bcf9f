"""The preset book and the settings of a run as lines: `--list-presets`, `--dry-run`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import reduce
from typing import Any

from unified_vae.config.base import leaves
from unified_vae.config.presets import SECTIONS, PresetBook
from unified_vae.config.run import ComposedRun
from unified_vae.console import WIDTH, table, value_text, wrapped

_FOLDERS = re.compile(r"[^\s()]*[/\\]([^\s()/\\]+\.json)")


def mode_lines(book: PresetBook) -> list[str]:
    """List each mode, what it is and what it is for."""
    rows = [(mode.name, _described(mode.description, mode.use_case)) for mode in book.modes.values()]
    return table([("mode", "what it is"), *rows])


def listing_lines(book: PresetBook) -> list[str]:
    """List all modes with the presets that they combine, and all presets by section."""
    rows = [("mode", ", ".join(SECTIONS))]
    for mode in book.modes.values():
        absent = "defaults" if mode.fixes is None else "the run's"
        rows.append((mode.name, ", ".join(mode.presets.get(kind, absent) for kind in SECTIONS)))
    lines = ["modes (train.py --mode NAME)", *mode_lines(book), "", "modes combine", *table(rows)]
    for kind in SECTIONS:
        presets = book.presets(kind).values()
        lines += ["", f"{kind} presets (train_unified.py --{kind}-preset NAME)"]
        lines += table([(preset.name, _described(preset.description, preset.use_case)) for preset in presets])
    return [*lines, "", *(f"from {file.shown}" for file in book.files)]


def _described(*parts: str) -> str:
    return ": ".join(part for part in parts if part)


def config_lines(run: ComposedRun) -> list[str]:
    """List every setting with its origin, by section; `*` marks what a preset, a file or the command line gave."""
    values: dict[Any, Any] = run.config.model_dump()
    sections: dict[str, list[tuple[str, str, str]]] = {}
    for keys in leaves(values):
        path = ".".join(map(str, keys))
        section, _, name = path.partition(".") if len(keys) > 1 else ("", "", path)
        origin = run.origins[path]
        # other defaults of a loss term whose weight is 0 say nothing about the run
        if section == "loss" and origin == "default" and name.partition(".")[2] != "weight":
            term = values["loss"].get(keys[1])
            if isinstance(term, Mapping) and term.get("weight") == 0:
                continue
        value: Any = reduce(lambda inner, key: inner[key], keys, values)
        name = "kl.weight (beta)" if path == "loss.kl.weight" else name
        sections.setdefault(section, []).append((name, value_text(value), origin))

    names = ", ".join(f"{kind} {name}" for kind, name in run.names.items())
    lines = [
        *wrapped(f"settings ({names})" if names else "settings", "  "),
        "  * given by a preset, a file or the command line; the rest are defaults",
    ]
    for section, rows in sections.items():
        lines += ["", *([f"{section}."] if section else [])]
        name_width = max(len(name) for name, _, _ in rows)
        value_width = min(max(len(value) for _, value, _ in rows), 14)
        for name, value, origin in rows:
            mark = " " if origin == "default" else "*"
            line = f"{mark} {name:<{name_width}}  {value:<{value_width}}"
            # without what the section's heading says already, and with the file's name instead of its path
            short = re.sub(r"^(loss|training|model|dataset|augment) preset ", "preset ", origin)
            short = _FOLDERS.sub(r"\1", short)
            if len(line) + 2 + len(short) <= WIDTH:
                lines.append(f"{line}  {short}")
            else:
                lines += [line.rstrip(), *(f"      {rest}" for rest in wrapped(short))]
    return lines + [line for note in run.notes for line in ("", *wrapped(f"note: {note}", "  "))]
